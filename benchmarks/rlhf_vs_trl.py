"""Post-training on a CPU beside TRL: processor seconds of an update, and what is learned, on the same model and data.

    python benchmarks/rlhf_vs_trl.py --peer-python TRL/bin/python --out benchmarks/results/rlhf_vs_trl
    python benchmarks/rlhf_vs_trl.py --peer-python TRL/bin/python --algorithms ppo --sizes tiny --seeds 0 --rounds 2

Both are alive at once, each in its own process and environment, and make their updates in turn, so that whatever else
the machine does hits them alike; each ratio compares two neighbouring turns. An update is an optimizer step of SFT, DPO
and the reward model, and a rollout with 4 epochs of 4 minibatches of PPO and GRPO. At the tiny size the task is
`bandit_kl`, whose objective is known exactly: 8 prompts, one token out of 16 as response, a KL coefficient of 0.1.
`benchmarks/README.md` says how to make the environment of TRL.
"""

import argparse
import os
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rlhf_vs_trl_tasks import SHAPES, facts
from turns import Outcome, Worker, chosen, environment, markdown, refuse_other_models, take_turns, write_report

WORKER = Path(__file__).with_name("rlhf_vs_trl_worker.py")
IMPLEMENTATIONS = ("lmstack", "trl")
ALGORITHMS = ("sft", "reward_model", "dpo", "ppo", "grpo")
UPDATES = {"tiny": 10, "5m": 2, "20m": 1}  # a turn, of PPO and GRPO
STEPS = {"tiny": 50, "5m": 10, "20m": 3}  # a turn, of the others
QUIET = {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


@dataclass
class PostTraining(Outcome):
    """What one implementation did with one algorithm at one size, from one seed.

    Attributes:
        algorithm: One of `ALGORITHMS`.
        size: Name of the shape.
        seed: Of weights, data and run.
        curve: Updates made, and what was measured then.
        num_made: Updates so far.
    """

    algorithm: str = ""
    size: str = ""
    seed: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    num_made: int = 0

    def note(self, answer: dict[str, Any]) -> None:
        """Put what was measured on the curve.

        Args:
            answer: The first, or to a turn.
        """
        answer.pop("first_loss", None)
        self.num_made += answer.get("steps", 0)
        if measured := answer.pop("measured"):
            self.curve.append({"update": self.num_made, **measured})

    def cpu_seconds(self) -> list[float]:
        """Processor seconds of an update, of each round."""
        return [turn["cpu_seconds"] / turn["steps"] for turn in self.turns]

    def collecting_seconds(self) -> list[float]:
        """Processor seconds of an update that went into explicit garbage collections, of each round."""
        return [turn["gc_cpu_seconds"] / turn["steps"] for turn in self.turns]


def measure(setting: tuple[str, str, int], pythons: dict[str, str], options: argparse.Namespace) -> list[PostTraining]:
    """Both implementations in one setting.

    Args:
        setting: Algorithm, size, seed.
        pythons: Interpreter of each implementation.
        options: Of the command line.
    """
    algorithm, size, seed = setting
    job: dict[str, Any] = {"algorithm": algorithm, "size": size, "seed": seed}
    outcomes = [PostTraining(name, **job) for name in options.implementations]
    workers = []
    for outcome in outcomes:
        command = [pythons[outcome.implementation], str(WORKER)]
        own_job = {**job, "implementation": outcome.implementation}
        workers.append(Worker(outcome, command, own_job, options.threads, QUIET))
    take_turns(workers, 1, updates_of(algorithm, size), options.rounds)
    refuse_other_models(outcomes)
    return outcomes


def updates_of(algorithm: str, size: str) -> int:
    """Updates of a turn.

    Args:
        algorithm: One of `ALGORITHMS`.
        size: Name of the shape.
    """
    return (UPDATES if algorithm in ("ppo", "grpo") else STEPS)[size]


def ratios(ours: list[PostTraining], theirs: list[PostTraining]) -> list[float]:
    """TRL's processor seconds over lmstack's, round by round over all seeds; above 1 lmstack is faster.

    Args:
        ours: lmstack, a run a seed.
        theirs: TRL, the same seeds.
    """
    found = []
    for one, other in zip(ours, theirs, strict=True):
        if not one.error and not other.error:
            found += [b / a for a, b in zip(one.cpu_seconds(), other.cpu_seconds(), strict=True)]
    return found


HEADER = ["algorithm", "size", "", "parameters", "CPU s / update", "of it gc.collect", "TRL / lmstack", "min-max"]


def rows(outcomes: list[PostTraining]) -> list[list[str]]:
    """The table of times: one row an algorithm, size and implementation, over all seeds.

    Args:
        outcomes: Of all settings.
    """
    result = []
    for (algorithm, size), group in grouped(outcomes).items():
        for name, runs in group.items():
            good = [run for run in runs if not run.error and run.turns]
            if not good:
                result.append([algorithm, size, name, "", "failed: " + runs[0].error, "", "", ""])
                continue
            seconds = statistics.median([value for run in good for value in run.cpu_seconds()])
            collecting = statistics.median([value for run in good for value in run.collecting_seconds()])
            compared = (
                ratios(group.get("lmstack", []), group.get("trl", [])) if name == "trl" and len(group) > 1 else []
            )
            ratio = f"{statistics.median(compared):.2f}" if compared else ""
            spread = f"{min(compared):.2f}-{max(compared):.2f}" if compared else ""
            parameters = f"{good[0].num_parameters:,}"
            spent = f"{collecting:.4f}" if collecting else ""
            result.append([algorithm, size, name, parameters, f"{seconds:.4f}", spent, ratio, spread])
    return result


def grouped(outcomes: list[PostTraining]) -> dict[tuple[str, str], dict[str, list[PostTraining]]]:
    """Runs by algorithm and size, then by implementation, seeds in order.

    Args:
        outcomes: Of all settings.
    """
    found: dict[tuple[str, str], dict[str, list[PostTraining]]] = {}
    for outcome in outcomes:
        group = found.setdefault((outcome.algorithm, outcome.size), {})
        group.setdefault(outcome.implementation, []).append(outcome)
    return found


def curve_rows(outcomes: list[PostTraining]) -> list[list[str]]:
    """The table of what was learned: mean and range over seeds at the start, in the middle and at the end.

    Args:
        outcomes: Of all settings.
    """
    result = []
    for (algorithm, size), group in grouped(outcomes).items():
        for name, runs in group.items():
            curves = [run.curve for run in runs if not run.error and run.curve]
            if not curves:
                continue
            quantity = next(name for name in ("objective", "reward", "loss") if name in curves[0][0])
            curves = [[measured for measured in curve if quantity in measured] for curve in curves]
            points = min(map(len, curves))
            places = sorted({0, points // 2, points - 1})
            row = [algorithm, size, name, quantity]
            for place in [*places, *[None] * (3 - len(places))]:
                row.append("" if place is None else point([curve[place] for curve in curves], quantity))
            optimum = [curve[0]["optimum"] for curve in curves if "optimum" in curve[0]]
            result.append([*row, f"{statistics.mean(optimum):.4f}" if optimum else ""])
    return result


def point(points: list[dict[str, float]], quantity: str) -> str:
    """One cell of the table of what was learned.

    Args:
        points: Of each seed.
        quantity: What to show.
    """
    values = [values[quantity] for values in points]
    spread = f" ({min(values):.4f}-{max(values):.4f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread} at {points[0]['update']:.0f}"


CURVE_HEADER = ["algorithm", "size", "", "quantity", "first", "middle", "last", "optimum"]


def write(path: Path, outcomes: list[PostTraining], options: argparse.Namespace, loads: tuple[float, float]) -> None:
    """`path`.md to read and `path`.json with every turn and curve.

    Args:
        path: Without a suffix.
        outcomes: Of all settings.
        options: Of the command line.
        loads: Load average over a minute, before and after.
    """
    known = environment(outcomes, options.threads, loads, "TRL") | {"rounds": options.rounds, "seeds": options.seeds}
    versions = ", ".join(f"{name} {version}" for name, version in known["versions"].items())
    lines = [
        "# Post-training on a CPU, beside TRL",
        "",
        f"`{known['command']}`",
        "",
        f"{known['cpu']}, {known['cores']} cores, {known['threads']} threads for each; load average {loads[0]:.2f} "
        f"before, {loads[1]:.2f} after. {versions}.",
        "",
        f"{known['rounds']} rounds for each of the seeds {', '.join(map(str, known['seeds']))}. `CPU s / update` is "
        "the median over rounds and seeds; `TRL / lmstack` the median, least and largest of the ratios within a round: "
        "above 1, lmstack is faster.",
        "",
        *markdown(HEADER, rows(outcomes)),
        "",
        "What was learned: mean over seeds, least and largest in brackets, at the number of updates.",
        "",
        *markdown(CURVE_HEADER, curve_rows(outcomes)),
        "",
    ]
    shapes = {size: facts(SHAPES[size]) for size in options.sizes}
    write_report(path, lines, {**known, "shapes": shapes, "outcomes": [asdict(outcome) for outcome in outcomes]})


def show(header: list[str], cells: list[list[str]]) -> None:
    """A table on the screen.

    Args:
        header: Of its columns.
        cells: By row.
    """
    table = Table(*header, box=box.SIMPLE)
    for row in cells:
        table.add_row(*row)
    Console(width=150).print(table)


def parse_options() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", type=chosen(ALGORITHMS), default=list(ALGORITHMS), help=",".join(ALGORITHMS))
    parser.add_argument("--sizes", type=chosen(tuple(SHAPES)), default=list(SHAPES), help=",".join(SHAPES))
    parser.add_argument("--implementations", type=chosen(IMPLEMENTATIONS), default=list(IMPLEMENTATIONS))
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=10, help="turns that are timed")
    parser.add_argument("--threads", type=int, default=1, help="of each")
    parser.add_argument("--peer-python", default=sys.executable, help="has trl")
    parser.add_argument("--out", type=Path, help="write <out>.md and <out>.json")
    options = parser.parse_args()
    if min(options.rounds, options.threads) < 1:
        parser.error("--rounds and --threads: at least 1")
    return options


def main() -> None:
    """Measure every setting that was asked for and show the tables."""
    options = parse_options()
    pythons = {"lmstack": sys.executable, "trl": options.peer_python}
    before, outcomes = os.getloadavg()[0], []
    settings = [(a, s, seed) for s in options.sizes for a in options.algorithms for seed in options.seeds]
    for number, setting in enumerate(settings, 1):
        print(f"{number}/{len(settings)}: {setting[0]}, {setting[1]}, seed {setting[2]}", file=sys.stderr, flush=True)
        outcomes += measure(setting, pythons, options)
        if options.out:  # after each, so that a long run that is cut off leaves what it had
            write(options.out, outcomes, options, (before, os.getloadavg()[0]))
    show(HEADER, rows(outcomes))
    show(CURVE_HEADER, curve_rows(outcomes))


if __name__ == "__main__":
    main()
