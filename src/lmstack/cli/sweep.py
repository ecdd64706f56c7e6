"""`-m`: Hydra's sweepers and launchers over any training command, without `@hydra.main`.

Each run is a process of its own: Lightning's launcher starts further ranks by running the command line again, which
must be that of the run and not of the sweep, and neither random state nor memory leaks from one run to the next.
"""

import contextlib
import csv
import io
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf

from lmstack.cli.args import Arguments, Override
from lmstack.cli.compose import explained, locate, search_path
from lmstack.cli.failures import ConfigError
from lmstack.cli.overrides import sweep_overrides
from lmstack.cli.resolvers import RUN_ID, register_resolvers, run_id

RESULT_FILE = "result.json"
RESULTS = "results.csv"


class SweepJob:
    """One run of a sweep: what Hydra's launchers call, here or in another process.

    Args:
        command: `fit`, `validate`, `test` or `predict`.
        config: The config file.
        fixed: Overrides with quoting of their own, the same for every run.
    """

    def __init__(self, command: str, config: str, fixed: list[str]) -> None:
        self.command = command
        self.config = str(Path(config).absolute())
        self.fixed = fixed

    def __call__(self, config: Any) -> float | None:
        """Run, unless an earlier attempt at the sweep has done so with the same values.

        Args:
            config: As composed by the launcher; the run composes its own.

        Raises:
            RuntimeError: The run failed; the message names its log.
        """
        from hydra.core.hydra_config import HydraConfig

        del config
        job = HydraConfig.get()
        folder = Path(job.runtime.output_dir)
        if folder.is_relative_to(Path.cwd()):
            folder = folder.relative_to(Path.cwd())
        overrides = [text for text in job.overrides.task if not text.startswith("++ckpt_path=")]
        said = shlex.join(text.lstrip("+") for text in overrides)
        result = folder / RESULT_FILE
        done = _read_result(result, overrides)
        if done is not None:
            print(f"[{job.job.num}] {said}  done before: {_said(done)}", flush=True)
            return _objective(done)
        print(f"[{job.job.num}] {said}", flush=True)
        begin = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "log.txt"
        argv = [sys.executable, "-m", "lmstack", self.command, "--config", self.config, *job.overrides.task]
        argv += [*self.fixed, f"++trainer.default_root_dir={json.dumps(str(folder))}"]
        environment = {**os.environ, RUN_ID: f"{folder.parent.name}-{folder.name}", "LMSTACK_RESULT": str(result)}
        with log.open("w") as file:
            status = _run(argv, file, environment)
        if status:
            last = next((line for line in reversed(log.read_text().splitlines()) if line.strip()), "")
            raise RuntimeError(f"run {job.job.num} failed with exit status {status}, see {log}: {last}")
        outcome = json.loads(result.read_text()) if result.exists() else {"objective": None, "metrics": {}}
        result.write_text(json.dumps({**outcome, "overrides": overrides}, indent=1))
        print(f"[{job.job.num}] {_said(outcome)} in {time.monotonic() - begin:.0f} s", flush=True)
        return _objective(outcome)


def _run(argv: list[str], log: IO[str], environment: dict[str, str]) -> int:
    process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()  # Ctrl-C reached it too: it finishes its step and saves
        raise


def sweep(command: str, arguments: Arguments) -> int:
    """Run a command once for each combination of values.

    Args:
        command: `fit`, `validate`, `test` or `predict`.
        arguments: The command line.

    Returns:
        The exit status.

    Raises:
        ConfigError: The command line is wrong, or a run failed.
    """
    if arguments.config is None:
        raise ConfigError("no config: name one with --config, such as --config conf/pretrain.yaml")
    root, name = locate(arguments.config)
    register_resolvers()
    hydra_own = [override for override in arguments.overrides if override.key.partition(".")[0].startswith("hydra")]
    others = [override for override in arguments.overrides if override not in hydra_own]
    fixed = [override.text for override in others if override.is_option]
    swept = [override for override in others if not override.is_option]
    job = SweepJob(command, arguments.config, [word for text in fixed for word in text.split(" ", 1)])
    with explained(arguments.config), search_path(root) as hydra:
        overrides = [*_hydra_settings(hydra_own), *sweep_overrides(swept, hydra, name)]
        folder = _sweep_folder(hydra, name, overrides)
        print(f"sweep in {folder}", flush=True)
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # Hydra repeats there what we say of a failed run
                hydra.multirun(config_name=name, task_function=job, overrides=overrides)
        except RuntimeError as error:
            raise ConfigError(str(error)) from error
        except KeyboardInterrupt:
            print(f"sweep interrupted: add hydra.sweep.dir={folder} to go on with it", file=sys.stderr)
            raise
        finally:
            write_results(folder)
    return 0


def _hydra_settings(own: list[Override]) -> list[str]:
    """What we ask of Hydra, unless the user says otherwise."""
    settings = {
        "hydra/job_logging": "none",
        "hydra/hydra_logging": "none",
        "hydra.output_subdir": "null",
        "hydra.sweep.dir": f"multirun/{run_id()}",
    }
    given = {override.key for override in own}
    return [*(f"{key}={value}" for key, value in settings.items() if key not in given), *(o.text for o in own)]


def _sweep_folder(hydra: Any, config_name: str, overrides: list[str]) -> Path:
    from hydra.types import RunMode

    config = hydra.compose_config(config_name, [o for o in overrides if o.startswith("hydra")], RunMode.MULTIRUN)
    return Path(str(OmegaConf.select(config, "hydra.sweep.dir")))


def write_results(folder: Path) -> None:
    """Gather the results of all runs into `results.csv`.

    Args:
        folder: The folder of the sweep.
    """
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob(f"*/{RESULT_FILE}"), key=lambda p: (len(p.parent.name), p.parent.name)):
        result = json.loads(path.read_text())
        values = dict(text.lstrip("+").partition("=")[::2] for text in result.get("overrides", []))
        rows.append({"run": path.parent.name, **values, **result["metrics"]})
    if rows:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        with (folder / RESULTS).open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        print(f"results of {len(rows)} runs in {folder / RESULTS}", flush=True)


def _read_result(path: Path, overrides: list[str]) -> dict[str, Any] | None:
    """The result of a run that is done with these values."""
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text())
    return result if result.get("overrides") == overrides else None


def _objective(result: dict[str, Any]) -> float | None:
    return None if result["objective"] is None else float(result["objective"])


def _said(result: dict[str, Any]) -> str:
    objective = result["objective"]
    return "no metric" if objective is None else f"objective {objective:.6g}"
