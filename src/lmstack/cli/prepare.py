"""`lmstack data prepare`: sources through stages to shards and a report."""

from pathlib import Path

from rich.console import Console

from lmstack.cli.data import summary_table
from lmstack.prep.build import locked
from lmstack.prep.collect.source import Source
from lmstack.prep.executors import Executor, LocalExecutor
from lmstack.prep.prepare import prepare_documents
from lmstack.prep.shards import CORPUS_FOLDER, HOLD_OUT, Shards, build_shards
from lmstack.prep.stage_kinds import StageConfig
from lmstack.prep.summary import write_summary
from lmstack.reports.corpus_report import corpus_report

REPORT_FILE = "report.html"


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
    chosen = {name: stage for name, stage in stages.items() if stage is not None}
    if shards is not None:
        chosen[HOLD_OUT] = shards.hold_out()  # type: ignore[assignment]
    folder = Path(output)
    executor = executor or LocalExecutor()
    with locked(folder), executor.open() as run:
        plan, results = prepare_documents(folder, sources, chosen, run, seed=seed)
        manifest = None if shards is None else build_shards(plan, results[-1], shards, executor.num_workers)
    summary = write_summary(plan, results, manifest)
    (folder / REPORT_FILE).write_text(corpus_report(str(folder), summary), encoding="utf-8")
    if manifest is not None:
        Console().print(summary_table(str(folder / CORPUS_FOLDER), manifest))
    print(f"{folder / REPORT_FILE}: what every stage kept and dropped, and why")
