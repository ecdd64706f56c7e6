"""Prepare a corpus: sources through stages, each finished partition kept, so that a run that was killed goes on."""

import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lmstack.data.shard_format import write_json
from lmstack.prep.collect.source import Source
from lmstack.prep.plan import STAGES_FOLDER, Plan, Step, make_plan
from lmstack.prep.pool import Map
from lmstack.prep.progress import byte_progress
from lmstack.prep.stage import Stage
from lmstack.prep.tally import Tally, total
from lmstack.prep.task import SURVEYS, Task, run_task, tally_file

IDENTITY_FILE = "identity.json"
_MOST_LISTED = 12


@dataclass(frozen=True)
class StageResult:
    """What a stage did.

    Attributes:
        name: Of the stage.
        tally: Sum over its partitions.
        by_source: The same for each source.
        wall_seconds: How long this run worked on it; 0 when it was finished before.
    """

    name: str
    tally: Tally
    by_source: Mapping[str, Tally]
    wall_seconds: float


def prepare_documents(
    output: Path, sources: Mapping[str, Source], stages: Mapping[str, Stage], run: Map, *, seed: int = 0
) -> tuple[Plan, list[StageResult]]:
    """Run every stage that is not finished.

    Args:
        output: Folder of the preparation.
        sources: By name.
        stages: By name, in order.
        run: How tasks are run.
        seed: Of the examples in the report.

    Raises:
        ValueError: A source names no file, a name is no name, or a stage's settings do not fit its input.
    """
    plan = make_plan(output, sources, stages, seed)
    make_way(plan)
    results: list[StageResult] = []
    console = Console(stderr=True)
    for number, planned in enumerate(plan.stages):
        began = time.perf_counter()
        num_tasks = sum(_run_step(plan, step, run) for step in plan.steps() if step.stage == number)
        seconds = time.perf_counter() - began if num_tasks else 0.0
        results.append(stage_result(plan, number, seconds))
        console.print(result_line(results[-1]), highlight=False, soft_wrap=True)
        shutil.rmtree(plan.folder(number) / SURVEYS, ignore_errors=True)
        assert planned.name == results[-1].name
    return plan, results


def make_way(plan: Plan) -> None:
    """Clear away what stages wrote under other settings; what fits the plan stays.

    Args:
        plan: Of the preparation.
    """
    root = plan.output / STAGES_FOLDER
    root.mkdir(parents=True, exist_ok=True)
    for leftover in [*plan.output.glob("*.tmp"), *root.glob("*/*.json.*.tmp"), *root.glob("*/*/*.tmp")]:
        leftover.unlink(missing_ok=True)
    for folder in set(root.iterdir()) - {plan.folder(number) for number in range(len(plan.stages))}:
        _discard(folder)
    for number, planned in enumerate(plan.stages):
        folder = plan.folder(number)
        file = folder / IDENTITY_FILE
        if not file.exists() or file.read_text(encoding="utf-8").strip() != f'"{planned.identity}"':
            _discard(folder)
            folder.mkdir()
            write_json(file, planned.identity)


def _discard(folder: Path) -> None:
    """Delete what a stage wrote; what is left of it if this is stopped belongs to no stage any more."""
    (folder / IDENTITY_FILE).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def stage_result(plan: Plan, number: int, wall_seconds: float) -> StageResult:
    """The sum of a finished stage's tallies.

    Args:
        plan: Of the preparation.
        number: Place of the stage.
        wall_seconds: How long it took.
    """
    import orjson

    groups: dict[str, list[Tally]] = {name: [] for name in plan.sources}
    for partition in plan.partitions:
        record = orjson.loads(tally_file(plan.folder(number), partition.index).read_bytes())
        groups[partition.source].append(Tally.from_json(record))
    by_source = {name: total(tallies) for name, tallies in groups.items()}
    return StageResult(plan.stages[number].name, total(by_source.values()), by_source, wall_seconds)


def result_line(result: StageResult) -> str:
    """A stage in a line: what came in, what went on, how fast.

    Args:
        result: Of the stage.
    """
    tally = result.tally
    dropped = _listed((reason, amount.documents) for reason, amount in tally.dropped.items())
    counted = _listed(tally.counts.most_common())
    emptied = [name for name, own in result.by_source.items() if own.taken.documents and not own.kept.documents]
    speed = (
        f"{tally.taken.bytes / 1e6 / result.wall_seconds:.1f} MB/s, {result.wall_seconds:.1f} s"
        if result.wall_seconds
        else "finished before"
    )
    return (
        f"{result.name:16} {tally.taken.documents:>10,} documents in, {tally.kept.documents:>10,} out, "
        f"{tally.kept.bytes / 1e6:>9,.1f} MB, {speed}"
        + (f"; dropped: {dropped}" if dropped else "")
        + (f"; counted: {counted}" if counted else "")
        + (f"; nothing is left of {', '.join(emptied)}" if emptied else "")
    )


def _listed(numbers: Iterable[tuple[str, int]]) -> str:
    """What there is how often, the most frequent first; of many, the rest together."""
    ordered = sorted(numbers, key=lambda item: -item[1])
    shown = [f"{what} {number:,}" for what, number in ordered[:_MOST_LISTED]]
    rest = ordered[_MOST_LISTED:]
    return ", ".join(shown + ([f"{len(rest)} others {sum(number for _, number in rest):,}"] if rest else []))


def _run_step(plan: Plan, step: Step, run: Map) -> int:
    """Run the tasks of a step that are not done; their number."""
    tasks = [Task(plan, step, index) for index in range(step.num_tasks)]
    if step.action in ("survey", "decide") and _is_decided(plan, step):
        return 0
    todo = [task for task in tasks if not task.result.exists()]
    if todo:
        name = plan.stages[step.stage].name
        done = sum(task.size for task in tasks) - sum(task.size for task in todo)
        with byte_progress(f"{name}: {step.action}", sum(task.size for task in tasks), done) as progress:
            for size in run(run_task, todo):
                progress(size)
    return len(todo)


def _is_decided(plan: Plan, step: Step) -> bool:
    return Task(plan, Step(step.stage, "decide", 1), 0).result.exists()
