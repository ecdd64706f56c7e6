"""Training speed on a CPU: lmstack beside a plain loop of its own model, transformers' Trainer and litgpt.

    python benchmarks/pretrain_throughput.py                                   # what lmstack's environment can run
    python benchmarks/pretrain_throughput.py --peer-python PEERS/bin/python --out benchmarks/results/pretrain_throughput

All four are alive at once, each in its own process, and take their steps in turn: whatever else the machine does hits
them alike, and each ratio compares two neighbouring turns. Same shape, batch, AdamW settings and gradient clipping.
`benchmarks/README.md` says how to make the environment of the peers.
"""

import argparse
import math
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from turns import Outcome, Worker, chosen, environment, markdown, refuse_other_models, take_turns, write_report

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
MOST_LOSS_ERROR = 0.5  # of the first step, from ln V: weights and logits start small


@dataclass
class Training(Outcome):
    """What one implementation did in one setting.

    Attributes:
        size: Name of the shape.
        precision: `fp32` or `bf16-mixed`.
        compiled: Whether through `torch.compile`.
        first_loss: Of the first step, in nats.
    """

    size: str = ""
    precision: str = "fp32"
    compiled: bool = False
    first_loss: float = math.nan

    def note(self, answer: dict[str, Any]) -> None:
        """Keep the loss of the first step.

        Args:
            answer: The first, or to a turn.
        """
        self.first_loss = answer.pop("first_loss", math.nan)

    def speeds(self) -> list[float]:
        """Tokens per second of each round."""
        shape = SHAPES[self.size]
        return [shape["batch_size"] * shape["seq_len"] * turn["steps"] / turn["seconds"] for turn in self.turns]


def measure(setting: tuple[str, str, bool], pythons: dict[str, str], options: argparse.Namespace) -> list[Training]:
    """All implementations in one setting.

    Args:
        setting: Size, precision, whether compiled.
        pythons: Interpreter of each implementation.
        options: Of the command line.
    """
    size, precision, compiled = setting
    outcomes = [Training(name, size=size, precision=precision, compiled=compiled) for name in options.implementations]
    job = {"shape": SHAPES[size], "precision": precision, "compiled": compiled}
    workers = []
    for outcome in outcomes:
        command = [pythons[outcome.implementation], str(WORKER)]
        own_job = {**job, "implementation": outcome.implementation}
        workers.append(Worker(outcome, command, own_job, options.threads))
    take_turns(workers, options.warmup_steps, options.steps[size], options.rounds)
    check(outcomes)
    return outcomes


def check(outcomes: list[Training]) -> None:
    """Refuse to compare what is not the same work.

    Args:
        outcomes: Of one setting; those that fail the check get an error.
    """
    refuse_other_models(outcomes)
    for outcome in outcomes:
        expected = math.log(SHAPES[outcome.size]["vocab_size"])
        if not outcome.error and not abs(outcome.first_loss - expected) < MOST_LOSS_ERROR:
            outcome.error = f"loss of the first step {outcome.first_loss:.3f}, not near ln V = {expected:.3f}"


def ratios(subject: Training | None, other: Training) -> list[float]:
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


def rows(outcomes: list[Training]) -> list[list[str]]:
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


def write(path: Path, outcomes: list[Training], facts: dict[str, Any]) -> None:
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
        *markdown(HEADER, rows(outcomes)),
        "",
    ]
    shapes = {size: SHAPES[size] for size in facts["steps"]}
    write_report(path, lines, {**facts, "shapes": shapes, "outcomes": [asdict(outcome) for outcome in outcomes]})


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
    loads = (load, os.getloadavg()[0])
    chosen_options = {"rounds": options.rounds, "steps": options.steps, "warmup_steps": options.warmup_steps}
    facts = environment(outcomes, options.threads, loads, "PEERS") | chosen_options
    console.print(f"{facts['cpu']}, {facts['threads']} threads, {facts['versions']}", highlight=False)
    if options.out is not None:
        write(options.out, outcomes, facts)


def show(console: Console, outcomes: list[Training]) -> None:
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
