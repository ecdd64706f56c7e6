"""How long until something happens: help, a composed config, the first training step; and where the time goes.

    python benchmarks/startup.py            # writes benchmarks/results/startup.md

Every figure is a whole process from its start, on a warm disk. The goals: help in 0.5 s, the first step of a
5M-parameter model in 7 s on a CPU.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch

REPOSITORY = Path(__file__).parents[1]
RESULT = REPOSITORY / "benchmarks" / "results" / "startup.md"
LMSTACK = [sys.executable, "-m", "lmstack"]
IMPORTS = """
from lmstack.cli.lean_imports import import_lightning
import_lightning({})
import lmstack.cli.training, lmstack.stages.causal_lm, lmstack.data.modules.pretraining, lmstack.callbacks
"""


def wall_and_cpu(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock, and of the processor in children that have ended."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    result = run()
    wall = time.perf_counter() - begin if result is None else float(str(result))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def whole(argv: list[str]) -> None:
    """Run a command to its end."""
    subprocess.run([*LMSTACK, *argv], check=True, capture_output=True, cwd=REPOSITORY)


def first_step(argv: list[str]) -> float:
    """Seconds until the line that tells of step 1; the process then runs to its end."""
    begin = time.perf_counter()
    with subprocess.Popen([*LMSTACK, *argv], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        seen = next((time.perf_counter() - begin for line in process.stdout if line.startswith("step 1/")), None)
        process.stdout.read()
    if seen is None or process.returncode:
        raise RuntimeError(f"no first step: exit status {process.returncode} of {argv}")
    return seen


def corpus(folder: Path) -> Path:
    """Build a small corpus of bytes."""
    text = Path(__file__).read_text()
    (folder / "text").mkdir()
    for number in range(40):
        (folder / "text" / f"{number}.txt").write_text(f"{number}\n{text}" * 5)
    whole(["tokenizer", "train", "kind=byte", f"output={folder}/tokenizer", f"sources.a={folder}/text"])
    whole(
        [
            *("data", "build", f"output={folder}/corpus", f"sources.a={folder}/text", f"tokenizer={folder}/tokenizer"),
            *("validation_fraction=0.2", "num_workers=1"),
        ]
    )
    return folder / "corpus"


def import_seconds() -> dict[str, float]:
    """Self time of imports by top-level package, largest first."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", IMPORTS], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    seconds: dict[str, float] = defaultdict(float)
    for line in result.stderr.splitlines():
        parts = line.removeprefix("import time:").split("|")
        if len(parts) == 3 and parts[0].strip().isdigit():
            seconds[parts[2].strip().partition(".")[0]] += int(parts[0]) / 1e6
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = corpus(folder)
        fit = [
            *("fit", "--config", "conf/pretrain.yaml", "model=llama_5m", "model.transformer.vocab_size=8192"),
            *(f"data.path={data}", "trainer.max_steps=2", "trainer.limit_val_batches=1", "schedule=constant"),
            *("model.schedule.warmup=1", "overwrite=true", f"trainer.default_root_dir={folder}/run"),
        ]
        config = ["config", "--config", "conf/pretrain.yaml", f"data.path={data}"]
        measured: dict[str, Callable[[], object]] = {
            "`lmstack`": lambda: whole([]),
            "`lmstack --help`": lambda: whole(["--help"]),
            "`lmstack fit --help` (list of options cached)": lambda: whole(["fit", "--help"]),
            "`lmstack config --config conf/pretrain.yaml`": lambda: whole(config),
            "first step of `lmstack fit`, 5M parameters": lambda: first_step(fit),
        }
        rows = []
        for label, run in measured.items():
            run()  # warm disk, warm cache
            walls, cpus = zip(*(wall_and_cpu(run) for _ in range(runs)), strict=True)
            rows.append((label, min(walls), statistics.median(walls), statistics.median(cpus)))
            print(*rows[-1], flush=True)
    write(rows, import_seconds(), runs)


def write(rows: list[tuple[str, float, float, float]], imports: dict[str, float], runs: int) -> None:
    """Write the tables."""
    lines = [
        "# Start-up",
        "",
        f"`python benchmarks/startup.py --runs {runs}`: {runs} runs of each, whole processes, warm disk.",
        f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} CPU cores; load average "
        f"{os.getloadavg()[1]:.1f} over the last five minutes (CPU seconds do not depend on it, wall seconds do).",
        "",
        "| command | wall min (s) | wall median (s) | CPU median (s) |",
        "|---|---|---|---|",
        *(f"| {label} | {low:.2f} | {median:.2f} | {cpu:.2f} |" for label, low, median, cpu in rows),
        "",
        "CPU seconds of the last row are of the whole run, two steps, validation and checkpoint included.",
        "",
        "Where the imports of `fit` take their time (`-X importtime`, self time by package):",
        "",
        "| package | s |",
        "|---|---|",
        *(f"| {name} | {seconds:.2f} |" for name, seconds in list(imports.items())[:12]),
        f"| all | {sum(imports.values()):.2f} |",
        "",
    ]
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text("\n".join(lines))
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
