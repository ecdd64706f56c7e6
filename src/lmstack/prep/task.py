"""One task of a preparation: a partition through one stage, written whole and recorded last."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from lmstack.data.shard_format import whole_file
from lmstack.prep.blocks import SUFFIX, BlockWriter, read_documents
from lmstack.prep.collect.piece import read_piece
from lmstack.prep.collect.reading import Reading
from lmstack.prep.document import Document, Dropped, Verdict
from lmstack.prep.plan import Plan, Step
from lmstack.prep.stage import Context, CorpusStage, Only, Stage
from lmstack.prep.tally import Tally

DOCUMENTS, DROPPED, TALLIES, SURVEYS, DECISIONS = "documents", "dropped", "tallies", "surveys", "decisions"


@dataclass(frozen=True)
class Task:
    """What one process does at a time.

    Attributes:
        plan: Of the preparation.
        step: Which step.
        index: Which partition; 0 for `decide`.
    """

    plan: Plan
    step: Step
    index: int

    @property
    def result(self) -> Path:
        """The file or folder whose existence says that the task is done."""
        folder = self.plan.folder(self.step.stage)
        if self.step.action == "survey":
            return survey_file(folder, self.index)
        return folder / DECISIONS if self.step.action == "decide" else tally_file(folder, self.index)

    @property
    def size(self) -> int:
        """Bytes of the partition's files, for the progress bar."""
        return 0 if self.step.action == "decide" else self.plan.partitions[self.index].size


def documents_file(folder: Path, index: int) -> Path:
    """The documents of a partition that a stage kept.

    Args:
        folder: Of the stage.
        index: Of the partition.
    """
    return folder / DOCUMENTS / f"{index:06d}{SUFFIX}"


def dropped_file(folder: Path, index: int) -> Path:
    """The documents of a partition that a stage dropped, with reasons.

    Args:
        folder: Of the stage.
        index: Of the partition.
    """
    return folder / DROPPED / f"{index:06d}{SUFFIX}"


def tally_file(folder: Path, index: int) -> Path:
    """The numbers of a partition; written last.

    Args:
        folder: Of the stage.
        index: Of the partition.
    """
    return folder / TALLIES / f"{index:06d}.json"


def survey_file(folder: Path, index: int) -> Path:
    """What a stage noted of a partition before it decided.

    Args:
        folder: Of the stage.
        index: Of the partition.
    """
    return folder / SURVEYS / f"{index:06d}"


def run_task(task: Task) -> int:
    """Do a task; afterwards its `result` exists.

    Args:
        task: Which.

    Returns:
        Its size, for the progress bar.
    """
    {"collect": _collect, "survey": _survey, "decide": _decide, "filter": _filter}[task.step.action](task)
    return task.size


def _collect(task: Task) -> None:
    partition = task.plan.partitions[task.index]
    counts: Counter[str] = Counter()

    def verdicts() -> Iterator[tuple[Document, Verdict]]:
        for piece in partition.pieces:
            for verdict in read_piece(Reading(partition.source, task.plan.sources[partition.source], piece, counts)):
                yield verdict.document if isinstance(verdict, Dropped) else verdict, verdict

    _write(task, verdicts(), counts)


def _filter(task: Task) -> None:
    stage = _live_stage(task)
    context = Context(task.index, task.plan.folder(task.step.stage) / DECISIONS)
    judge = stage.filter(context)
    only: Only = getattr(stage, "only", Only())

    def verdicts() -> Iterator[tuple[Document, Verdict]]:
        for document in _documents(task):
            yield document, judge(document) if only.concerns(document) else document

    _write(task, verdicts(), context.counts)


def _survey(task: Task) -> None:
    stage = _live_stage(task)
    assert isinstance(stage, CorpusStage)
    only: Only = getattr(stage, "only", Only())
    with whole_file(task.result) as temporary:
        stage.survey((document for document in _documents(task) if only.concerns(document)), temporary)


def _decide(task: Task) -> None:
    stage = _live_stage(task)
    assert isinstance(stage, CorpusStage)
    folder = task.plan.folder(task.step.stage)
    temporary = folder / f"{DECISIONS}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        stage.decide([survey_file(folder, partition.index) for partition in task.plan.partitions], temporary)
        temporary.rename(task.result)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _live_stage(task: Task) -> Stage:
    """The stage as this process has it: what it has loaded for one partition serves the next."""
    planned = task.plan.stages[task.step.stage]
    assert planned.stage is not None
    if planned.identity not in _STAGES:
        _STAGES[planned.identity] = replace(planned.stage)  # type: ignore[type-var]  # without what the plan's has loaded
    return _STAGES[planned.identity]


_STAGES: dict[str, Stage] = {}


def _documents(task: Task) -> Iterator[Document]:
    return read_documents(documents_file(task.plan.folder(task.step.stage - 1), task.index))


def _write(task: Task, verdicts: Iterator[tuple[Document, Verdict]], counts: Counter[str]) -> None:
    began = time.process_time()
    folder = task.plan.folder(task.step.stage)
    tally = Tally()
    with ExitStack() as files:
        keep, drop = (
            files.enter_context(BlockWriter(files.enter_context(whole_file(file))))
            for file in (documents_file(folder, task.index), dropped_file(folder, task.index))
        )
        for before, verdict in verdicts:
            tally.add(before, verdict, task.plan.seed)
            if isinstance(verdict, Dropped):
                drop.drop(verdict)
            else:
                keep.keep(verdict)
    tally.counts = counts
    tally.seconds = time.process_time() - began
    with whole_file(task.result) as temporary:
        temporary.write_text(json.dumps(tally.to_json(), ensure_ascii=False), encoding="utf-8")
