"""`lmstack data prepare`: sources through stages to shards and a report."""

from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from lmstack.cli.data import summary_table
from lmstack.data.manifest import Manifest
from lmstack.data.shard_format import whole_file, write_json
from lmstack.prep.build import disk_full_explained, locked
from lmstack.prep.collect.source import Source
from lmstack.prep.executors import Executor, LocalExecutor, SlurmExecutor
from lmstack.prep.plan import Plan, make_plan
from lmstack.prep.prepare import StageResult, make_way, prepare_documents
from lmstack.prep.shards import CORPUS_FOLDER, HOLD_OUT, Shards, build_shards
from lmstack.prep.slurm import write_jobs
from lmstack.prep.stage import Stage
from lmstack.prep.stage_kinds import StageConfig
from lmstack.prep.summary import write_summary
from lmstack.prep.task import Task, run_task
from lmstack.reports.corpus_report import corpus_report

REPORT_FILE = "report.html"
CONFIG_FILE = "config.yaml"


def prepare(
    *,
    output: str,
    sources: dict[str, Source],
    stages: dict[str, StageConfig | None],
    shards: Shards | None = None,
    executor: Executor | None = None,
    seed: int = 0,
) -> None:
    """From raw files to shards and a report: every stage keeps what it has finished, and drops nothing unsaid.

    Args:
        output: Folder of the preparation; a stopped run goes on there, and only what has changed is done again.
        sources: By name: which files, and how to read them.
        stages: By name, in order; null leaves a stage out.
        shards: How to tokenize what is left; null stops at documents.
        executor: Where the work is done; null is every core of this machine.
        seed: Of the examples in the report.
    """
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = _chosen(stages, shards)
    if isinstance(executor, SlurmExecutor):
        _write_config(folder, sources, stages, shards, seed)
        plan = make_plan(folder, sources, chosen, seed)
        make_way(plan)
        script = write_jobs(plan, executor, (folder / CONFIG_FILE).resolve())
        print(f"{script}: submits {len(list(plan.steps())) + 1} jobs, each after the one before")
        return
    executor = executor or LocalExecutor()
    with disk_full_explained(folder), locked(folder):
        _write_config(folder, sources, stages, shards, seed)
        with executor.open() as run:
            plan, results = prepare_documents(folder, sources, chosen, run, seed=seed)
        # its workers are gone before those that tokenize come: each holds models and tables of its stages in memory
        _write_report(plan, results, None)  # there also when nothing is left to make shards of
        if shards is not None:
            manifest = build_shards(plan, results[-1], shards, executor.num_workers)
            _write_report(plan, results, manifest)
    if shards is not None:
        Console().print(summary_table(str(folder / CORPUS_FOLDER), manifest))
    print(f"{folder / REPORT_FILE}: what every stage kept and dropped, and why")


def prepare_step(
    *,
    output: str,
    sources: dict[str, Source],
    stages: dict[str, StageConfig | None],
    shards: Shards | None = None,
    executor: Executor | None = None,
    seed: int = 0,
    step: int,
    part: int,
    num_parts: int,
) -> None:
    """Do a part of one step of a preparation: what a job of an array does.

    Args:
        output: As for `prepare`.
        sources: As for `prepare`.
        stages: As for `prepare`.
        shards: As for `prepare`.
        executor: Must be null: a step is done in this process.
        seed: As for `prepare`.
        step: Which step of the plan, from 0.
        part: Which part of its tasks, from 0.
        num_parts: In how many parts the tasks are cut.

    Raises:
        ValueError: There is no such step or part.
    """
    plan: Plan = make_plan(Path(output), sources, _chosen(stages, shards), seed)
    steps = list(plan.steps())
    if executor is not None or not 0 <= step < len(steps) or not 0 <= part < num_parts:
        raise ValueError(f"step={step}, part={part} of {num_parts}: the plan has {len(steps)} steps, and no executor.")
    for index in range(part, steps[step].num_tasks, num_parts):
        task = Task(plan, steps[step], index)
        if not task.result.exists():
            run_task(task)


def _chosen(stages: dict[str, StageConfig | None], shards: Shards | None) -> dict[str, Stage]:
    chosen: dict[str, Stage] = {name: stage for name, stage in stages.items() if stage is not None}
    if shards is not None:
        chosen[HOLD_OUT] = shards.hold_out()
    return chosen


def _write_report(plan: Plan, results: list[StageResult], manifest: Manifest | None) -> None:
    summary = write_summary(plan, results, manifest)
    with whole_file(plan.output / REPORT_FILE) as temporary:
        temporary.write_text(corpus_report(str(plan.output), summary), encoding="utf-8")


def _write_config(
    folder: Path,
    sources: dict[str, Source],
    stages: dict[str, StageConfig | None],
    shards: Shards | None,
    seed: int,
) -> None:
    """The resolved config; `lmstack data prepare --config <it>` does the same again. JSON is YAML too."""
    config = {
        "output": str(folder.resolve()),
        "sources": {name: asdict(source) for name, source in sources.items()},
        "stages": {name: None if stage is None else asdict(stage) for name, stage in stages.items()},
        "shards": None if shards is None else asdict(shards),
        "seed": seed,
    }
    write_json(folder / CONFIG_FILE, config)
