"""Training speed on a CPU: lmstack beside a plain loop of its own model, transformers' Trainer and litgpt.

    python benchmarks/pretrain_throughput.py                                   # what lmstack's environment can run
    python benchmarks/pretrain_throughput.py --peer-python PEERS/bin/python --out benchmarks/results/pretrain_throughput

All four are alive at once, each in its own process, and take their steps in turn: whatever else the machine does hits
them alike, and each ratio compares two neighbouring turns. Same shape, batch, AdamW settings and gradient clipping.
`benchmarks/README.md` says how to make the environment of the peers.
"""

import argparse
import contextlib
import importlib.metadata
import json
import math
import os
import platform
import re
import select
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

WORKER = Path(__file__).with_name("pretrain_throughput_worker.py")
IMPLEMENTATIONS = ("bare", "lmstack", "transformers", "litgpt")
PEERS = ("transformers", "litgpt")
SUBJECT = "lmstack"
_NAMES = ("vocab_size", "dim", "num_layers", "num_heads", "hidden_dim", "batch_size", "seq_len")
SHAPES = {
    "tiny": dict(zip(_NAMES, (512, 64, 2, 2, 160, 2, 32), strict=True)),
    "5m": dict(zip(_NAMES, (8192, 256, 4, 4, 640, 8, 256), strict=True)),
    "60m": dict(zip(_NAMES, (32000, 512, 14, 8, 1376, 2, 256), strict=True)),
}
TURN_STEPS = {"tiny": 10, "5m": 10, "60m": 5}
PRECISIONS = ("fp32", "bf16-mixed")
ANSWER_SECONDS = 900.0  # compilation included
MOST_LOSS_ERROR = 0.5  # of the first step, from ln V: weights and logits start small
MOST_PARAMETER_ERROR = 0.01


@dataclass
class Outcome:
    """What one implementation did in one setting.

    Attributes:
        implementation: Its name.
        size: Name of the shape.
        precision: `fp32` or `bf16-mixed`.
        compiled: Whether through `torch.compile`.
        num_parameters: Of the model, a tied matrix counted once.
        first_loss: Of the first step, in nats.
        versions: Of its packages.
        turns: Steps, seconds and processor seconds of each round.
        error: Why it did not run; empty when it did.
    """

    implementation: str
    size: str
    precision: str
    compiled: bool
    num_parameters: int = 0
    first_loss: float = math.nan
    versions: dict[str, str] = field(default_factory=dict)
    turns: list[dict[str, float]] = field(default_factory=list)
    error: str = ""

    def speeds(self) -> list[float]:
        """Tokens per second of each round."""
        shape = SHAPES[self.size]
        return [shape["batch_size"] * shape["seq_len"] * turn["steps"] / turn["seconds"] for turn in self.turns]


class Worker:
    """A process that takes steps when told to; the first failure ends it and is kept.

    Args:
        outcome: What it is to run, filled in as it goes.
        python: The interpreter.
        threads: Of torch.
    """

    def __init__(self, outcome: Outcome, python: str, threads: int) -> None:
        self.outcome = outcome
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `stop`
        job = {
            "implementation": outcome.implementation,
            "shape": SHAPES[outcome.size],
            "precision": outcome.precision,
            "compiled": outcome.compiled,
            "threads": threads,
        }
        count = str(threads)
        quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            [python, str(WORKER), json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **quiet, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count},
        )

    def wait_ready(self) -> None:
        """Wait until the model is built and the first step is next."""
        if answer := self._answer():
            self.outcome.num_parameters = answer["num_parameters"]
            self.outcome.versions = answer["versions"]

    def take(self, steps: int, *, timed: bool) -> None:
        """Let it take optimizer steps, alone.

        Args:
            steps: How many.
            timed: Keep the time.
        """
        if self.outcome.error:
            return
        self._say(str(steps))
        if answer := self._answer():
            self.outcome.first_loss = answer.pop("first_loss")
            if timed:
                self.outcome.turns.append(answer)

    def stop(self) -> None:
        """End it."""
        if self._process.poll() is None:
            self._say("")
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died: the answer, or its absence, will say so
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _answer(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], ANSWER_SECONDS)[0]:
            self._process.kill()
            self._fail(f"no answer in {ANSWER_SECONDS:.0f} s")
            return None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            lines = [text for text in self._errors.read().splitlines() if text.strip()]
            said = next((text for text in reversed(lines) if re.match(r"[\w.]*(Error|Exception|Exit)\b", text)), "")
            self._fail(said or (lines or [""])[-1] or f"exit status {self._process.returncode}")
            return None
        return json.loads(line)  # type: ignore[no-any-return]

    def _fail(self, reason: str) -> None:
        # Where a file lies on this machine is nobody's business.
        self.outcome.error = re.sub(r"(?:/[^\s/'\":,]+)+/", "", reason)[:300]
        self.outcome.turns = []


def measure(setting: tuple[str, str, bool], pythons: dict[str, str], options: argparse.Namespace) -> list[Outcome]:
    """All implementations in one setting.

    Args:
        setting: Size, precision, whether compiled.
        pythons: Interpreter of each implementation.
        options: Of the command line.
    """
    outcomes = [Outcome(name, *setting) for name in options.implementations]
    workers = [Worker(outcome, pythons[outcome.implementation], options.threads) for outcome in outcomes]
    try:
        for worker in workers:
            worker.wait_ready()
        for worker in workers:
            worker.take(options.warmup_steps, timed=False)
        for _ in range(options.rounds):
            for worker in workers:
                worker.take(options.steps[setting[0]], timed=True)
    finally:
        for worker in workers:
            worker.stop()
    check(outcomes)
    return outcomes


def check(outcomes: list[Outcome]) -> None:
    """Refuse to compare what is not the same work.

    Args:
        outcomes: Of one setting; those that fail the check get an error.
    """
    reference = next((outcome.num_parameters for outcome in outcomes if not outcome.error), 0)
    for outcome in outcomes:
        expected = math.log(SHAPES[outcome.size]["vocab_size"])
        if outcome.error:
            continue
        if abs(outcome.num_parameters / reference - 1) > MOST_PARAMETER_ERROR:
            outcome.error = f"{outcome.num_parameters:,} parameters, not {reference:,}"
        elif not abs(outcome.first_loss - expected) < MOST_LOSS_ERROR:
            outcome.error = f"loss of the first step {outcome.first_loss:.3f}, not near ln V = {expected:.3f}"


def ratios(subject: Outcome | None, other: Outcome) -> list[float]:
    """Speed of lmstack over another's, round by round; above 1 lmstack is faster.

    Args:
        subject: lmstack.
        other: Whom it is compared with.
    """
    if subject is None or subject.error or other.error or subject is other:
        return []
    return [ours / theirs for ours, theirs in zip(subject.speeds(), other.speeds(), strict=True)]


SETTING = ["size", "precision", "compiled", "implementation"]
HEADER = [*SETTING, "parameters", "first loss", "tokens/s", "lmstack / this", "min-max"]


def rows(outcomes: list[Outcome]) -> list[list[str]]:
    """The table, a row an outcome.

    Args:
        outcomes: Of all settings.
    """
    subjects = {(o.size, o.precision, o.compiled): o for o in outcomes if o.implementation == SUBJECT}
    result = []
    for o in outcomes:
        row = [o.size, o.precision, "yes" if o.compiled else "no", o.implementation]
        if o.error:
            result.append([*row, "", "", "failed: " + o.error, "", ""])
            continue
        compared = ratios(subjects.get((o.size, o.precision, o.compiled)), o)
        ratio = f"{statistics.median(compared):.3f}" if compared else ""
        spread = f"{min(compared):.3f}-{max(compared):.3f}" if compared else ""
        speed = f"{statistics.median(o.speeds()):,.0f}"
        result.append([*row, f"{o.num_parameters:,}", f"{o.first_loss:.3f}", speed, ratio, spread])
    return result


def environment(outcomes: list[Outcome], options: argparse.Namespace, loads: tuple[float, float]) -> dict[str, Any]:
    """What the figures depend on, without a path of this machine.

    Args:
        outcomes: Of all settings.
        options: Of the command line.
        loads: Load average over a minute, before and after.
    """
    own = {"python": platform.python_version(), "lmstack": importlib.metadata.version("lmstack")}
    versions = own | {name: version for outcome in outcomes for name, version in outcome.versions.items()}
    return {
        "command": command_line(),
        "versions": versions,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "rounds": options.rounds,
        "steps": options.steps,
        "warmup_steps": options.warmup_steps,
        "load_average_before_and_after": [round(load, 2) for load in loads],
    }


def command_line() -> str:
    """This command, with the interpreter of the peers and the folder of the results made general."""
    words, hidden = ["python benchmarks/pretrain_throughput.py"], False
    for word in sys.argv[1:]:
        name, equals, value = word.partition("=")
        if hidden or (name == "--peer-python" and equals):
            word = "PEERS/bin/python" if hidden else "--peer-python=PEERS/bin/python"
        elif os.path.isabs(value or word):
            word = f"{name}={Path(value).name}" if value else Path(word).name
        hidden = word == "--peer-python"
        words.append(word)
    return " ".join(words)


def cpu_model() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def write(path: Path, outcomes: list[Outcome], facts: dict[str, Any]) -> None:
    """`path`.md to read and `path`.json with every turn.

    Args:
        path: Without a suffix.
        outcomes: Of all settings.
        facts: From `environment`.
    """
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    before, after = facts["load_average_before_and_after"]
    work = "; ".join(
        f"{size} {SHAPES[size]['batch_size']} x {SHAPES[size]['seq_len']} tokens a step, {steps} steps a turn"
        for size, steps in facts["steps"].items()
    )
    lines = [
        "# Training speed on a CPU",
        "",
        f"`{facts['command']}`",
        "",
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads for each; load average {before} before, "
        f"{after} after. {versions}.",
        "",
        f"{facts['rounds']} rounds, after {facts['warmup_steps']} steps that are not timed: {work}. `tokens/s` is the "
        "median over rounds; `lmstack / this` the median, least and largest of the ratios within a round: above 1, "
        "lmstack is faster.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + "---|" * len(HEADER),
        *("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows(outcomes)),
        "",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".md").write_text("\n".join(lines))
    shapes = {size: SHAPES[size] for size in facts["steps"]}
    record = {**facts, "shapes": shapes, "outcomes": [asdict(outcome) for outcome in outcomes]}
    path.with_name(path.name + ".json").write_text(json.dumps(nan_free(record), indent=1) + "\n")


def nan_free(value: Any) -> Any:
    """The same with null for NaN, which JSON does not have.

    Args:
        value: Plain values, nested.
    """
    if isinstance(value, dict):
        return {key: nan_free(item) for key, item in value.items()}
    if isinstance(value, list):
        return [nan_free(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def chosen(allowed: tuple[str, ...]) -> Any:
    """A parser of comma-separated choices.

    Args:
        allowed: What may be chosen.
    """

    def parse(text: str) -> list[str]:
        words = text.split(",")
        for word in words:
            if word not in allowed:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(allowed)}")
        return words

    return parse


def parse_options() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=chosen(tuple(SHAPES)), default=["5m", "60m"], help="of " + ",".join(SHAPES))
    parser.add_argument("--precisions", type=chosen(PRECISIONS), default=list(PRECISIONS), help=",".join(PRECISIONS))
    parser.add_argument("--compiled", type=chosen(("no", "yes")), default=["no"], help="no,yes")
    parser.add_argument("--implementations", type=chosen(IMPLEMENTATIONS), default=list(IMPLEMENTATIONS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", help="a turn: one number, or one a size separated by commas (default: 10; 60m: 5)")
    parser.add_argument("--warmup-steps", type=int, default=2, help="before the first round")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each (default: the number of cores)")
    parser.add_argument("--peer-python", default=sys.executable, help="has transformers, accelerate and litgpt")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    options = parser.parse_args()
    counts = [TURN_STEPS[size] for size in options.sizes]
    if options.steps is not None:
        counts = [int(number) for number in options.steps.split(",")]
        counts = counts * len(options.sizes) if len(counts) == 1 else counts
    if len(counts) != len(options.sizes):
        parser.error(f"--steps={options.steps} for {len(options.sizes)} sizes: give one number, or one a size.")
    if min(*counts, options.rounds, options.warmup_steps) < 1:
        parser.error("--rounds, --steps and --warmup-steps must be at least 1.")
    options.steps = dict(zip(options.sizes, counts, strict=True))
    return options


def main() -> None:
    """Measure, print, write."""
    options = parse_options()
    pythons = {name: options.peer_python if name in PEERS else sys.executable for name in IMPLEMENTATIONS}
    console, outcomes = Console(), []
    load, begin = os.getloadavg()[0], time.monotonic()
    for size in options.sizes:
        for precision in options.precisions:
            for compiled in options.compiled:
                setting = (size, precision, compiled == "yes")
                outcomes += measure(setting, pythons, options)
                console.print(f"{time.monotonic() - begin:.0f} s since the start", highlight=False)
                show(console, outcomes[-len(options.implementations) :])
    facts = environment(outcomes, options, (load, os.getloadavg()[0]))
    console.print(f"{facts['cpu']}, {facts['threads']} threads, {facts['versions']}", highlight=False)
    if options.out is not None:
        write(options.out, outcomes, facts)


def show(console: Console, outcomes: list[Outcome]) -> None:
    """Print a table, and under it what failed.

    Args:
        console: Where.
        outcomes: Of one setting.
    """
    first = outcomes[0]
    table = Table(box=box.SIMPLE_HEAD, title=f"{first.size}, {first.precision}{', compiled' if first.compiled else ''}")
    for name in HEADER[len(SETTING) - 1 :]:
        table.add_column(name, justify="left" if name in SETTING else "right")
    for outcome, row in zip(outcomes, rows(outcomes), strict=True):
        shown = row[len(SETTING) - 1 :]
        table.add_row(*([shown[0], "", "", "failed"] if outcome.error else shown))
    console.print(table)
    for outcome in outcomes:
        if outcome.error:
            console.print(f"{outcome.implementation} failed: {outcome.error}", highlight=False, markup=False)


if __name__ == "__main__":
    main()
