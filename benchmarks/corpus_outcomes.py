"""What a preparation made of each document, and the lines of a score: shared by `corpus_score.py` and its classes."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

_HOLD_OUT = "hold_out"
_FIELDS = ("text", "metadata", "reason", "detail", "id")


@dataclass(frozen=True)
class Outcome:
    """What became of a document.

    Attributes:
        text: As it was last seen.
        metadata: As it was last seen.
        reason: Of its drop; None when it was kept, for training or held out for test.
        detail: Of its drop.
        id: Its id in the preparation.
        stage: Where it was last seen.
    """

    text: str
    metadata: dict[str, Any]
    reason: str | None
    detail: str | None
    id: str
    stage: str

    def was_dropped_as(self, *what: str) -> bool:
        """Whether it was dropped for a reason that begins so.

        Args:
            *what: Beginnings of reasons.
        """
        return self.reason is not None and self.reason.startswith(what)


@dataclass(frozen=True)
class Score:
    """One line of the table.

    Attributes:
        name: What is scored.
        found: Planted ones that were found.
        planted: How many were planted.
        right: Of what was found, how much is right.
        reported: How much was found; 0 where that is no question.
        note: What recall and precision mean here.
    """

    name: str
    found: float
    planted: int
    right: float = 0
    reported: int = 0
    note: str = ""

    @property
    def recall(self) -> float | None:
        """Share of what was planted that was found."""
        return self.found / self.planted if self.planted else None

    @property
    def precision(self) -> float | None:
        """Share of what was found that is right."""
        return self.right / self.reported if self.reported else None


def read_outcomes(prepared: Path) -> dict[str, Outcome]:
    """What became of each document, by name.

    Args:
        prepared: Output of a preparation.
    """
    outcomes: dict[str, Outcome] = {}
    folders = sorted((prepared / "stages").iterdir(), key=_finished)
    files = [file for folder in folders for file in sorted(folder.glob("dropped/*.jsonl.zst"))]
    for file in (*files, *sorted(folders[-1].glob("documents/*.jsonl.zst"))):
        stage = file.parents[1].name
        for record in _records(file):
            fields = {name: record.get(name) for name in _FIELDS}
            if stage == _HOLD_OUT:
                fields["reason"] = None
            outcome = Outcome(stage=stage, **fields)
            name = _name(outcome.metadata)
            if "/broken/" in outcome.metadata["path"]:
                name = f"{name}#{len(outcomes)}"
            if name in outcomes:
                raise SystemExit(f"{name} is there twice: kept or dropped in two places, or named twice.")
            outcomes[name] = outcome
    return outcomes


def _finished(folder: Path) -> float:
    """When a stage was finished: the stages in their order."""
    return max((file.stat().st_mtime_ns for file in folder.glob("tallies/*.json")), default=0)


def _records(file: Path) -> Iterator[dict[str, Any]]:
    with zstandard.open(file, "rt", encoding="utf-8", newline="\n") as stream:
        yield from map(json.loads, stream)


def _name(metadata: Mapping[str, Any]) -> str:
    if "name" in metadata:
        return str(metadata["name"])
    address = metadata.get("url") or metadata["path"]
    return re.sub(r"\.(txt|html)$", "", str(address).rpartition("/")[2])
