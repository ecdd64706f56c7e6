"""What a preparation will do: partitions of the sources, stages with their identities, steps in order."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import lmstack
from lmstack.prep.collect.cutting import Piece, file_state, packed
from lmstack.prep.collect.source import Source, list_pieces
from lmstack.prep.stage import CorpusStage, Only, ReadsFiles, Stage

COLLECT = "collect"
STAGES_FOLDER = "stages"
Action = Literal["collect", "survey", "decide", "filter"]
_SMALLEST_PARTITION = 1 << 20
_LARGEST_PARTITION = 1 << 25
_NUM_PARTITIONS = 64
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Partition:
    """Pieces of one source that are worked on together.

    Attributes:
        index: Its place in the corpus.
        source: Name of the source.
        pieces: What it holds.
    """

    index: int
    source: str
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Bytes to read."""
        return sum(piece.size for piece in self.pieces)


@dataclass(frozen=True)
class PlannedStage:
    """A stage in its place.

    Attributes:
        name: Its name in the config.
        stage: What it does; None for collecting.
        identity: Hash of everything that decides what it writes: its settings, all stages before it, the files read.
    """

    name: str
    stage: Stage | None
    identity: str


@dataclass(frozen=True)
class Step:
    """Tasks that may run side by side.

    Attributes:
        stage: Place of the stage.
        action: What each task does.
        num_tasks: One a partition; one for `decide`.
    """

    stage: int
    action: Action
    num_tasks: int


@dataclass(frozen=True)
class Plan:
    """Everything that decides what a preparation writes.

    Attributes:
        output: Folder of the preparation.
        sources: By name.
        partitions: Of all sources.
        stages: In order, collecting first.
        seed: Of the examples.
    """

    output: Path
    sources: Mapping[str, Source]
    partitions: tuple[Partition, ...]
    stages: tuple[PlannedStage, ...]
    seed: int

    def folder(self, number: int) -> Path:
        """Where a stage writes.

        Args:
            number: Place of the stage.
        """
        return self.output / STAGES_FOLDER / self.stages[number].name

    def steps(self) -> Iterator[Step]:
        """What has to be done, in order."""
        for number, planned in enumerate(self.stages):
            if planned.stage is None:
                yield Step(number, "collect", len(self.partitions))
                continue
            if isinstance(planned.stage, CorpusStage):
                yield Step(number, "survey", len(self.partitions))
                yield Step(number, "decide", 1)
            yield Step(number, "filter", len(self.partitions))


def make_plan(output: Path, sources: Mapping[str, Source], stages: Mapping[str, Stage], seed: int) -> Plan:
    """Cut the sources into partitions and name every stage by what decides its bytes.

    Args:
        output: Folder of the preparation.
        sources: By name.
        stages: By name, in order.
        seed: Of the examples.

    Raises:
        ValueError: A source names no file, a stage's files are missing, a name cannot be that of a folder, or a stage
            is for a source that is not there.
    """
    if not sources:
        raise ValueError("No sources are given. Name at least one, such as sources.web.paths=texts/*.jsonl.")
    for name in (*sources, *stages):
        if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name) or name == COLLECT:
            raise ValueError(f"The name {name!r} cannot be that of a source or stage. Use letters, digits, '-', '_'.")
    for name, stage in stages.items():
        if unknown := sorted(set(getattr(stage, "only", Only()).sources or ()) - set(sources)):
            raise ValueError(f"{name}.only.sources names {unknown[0]!r}, which is none of {', '.join(sources)}.")
    pieces = {name: list_pieces(name, source, _LARGEST_PARTITION) for name, source in sources.items()}
    total = sum(piece.size for group in pieces.values() for piece in group)
    size = min(max(total // _NUM_PARTITIONS, _SMALLEST_PARTITION), _LARGEST_PARTITION)
    partitions: list[Partition] = []
    for name, source in sources.items():
        for part in packed(list_pieces(name, source, size), size):
            partitions.append(Partition(len(partitions), name, part))
    read = {piece.path: file_state(piece.path) for group in pieces.values() for piece in group}
    identity = _hash([_FORMAT_VERSION, lmstack.__version__, seed, [asdict(p) for p in partitions], read])
    identity = _hash([identity, {name: asdict(source) for name, source in sources.items()}])
    planned = [PlannedStage(COLLECT, None, identity)]
    for name, stage in stages.items():
        identity = _hash([identity, name, type(stage).__qualname__, _settings(stage)])
        planned.append(PlannedStage(name, stage, identity))
    return Plan(output, dict(sources), tuple(partitions), tuple(planned), seed)


def _settings(stage: Stage) -> Any:
    """The fields of a stage, and the state of the files that it reads."""
    files = sorted(map(str, stage.input_files())) if isinstance(stage, ReadsFiles) else []
    return [asdict(stage), {file: file_state(file) for file in files}]  # type: ignore[call-overload]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
