"""The stage that cuts lines or paragraphs found in many documents: menus, notices, and what was copied."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lmstack.prep.deduplication.exact import normalized
from lmstack.prep.deduplication.repeats import PieceCounts, Repeats, write_repeats
from lmstack.prep.document import Document, Dropped, Verdict
from lmstack.prep.ngrams import Hashes
from lmstack.prep.stage import Context, Filter, StageSettings

REASON = "only repeated lines"

_SEPARATORS = {"line": re.compile(r"(\n)"), "paragraph": re.compile(r"(\n\s*\n)")}


@dataclass(frozen=True, kw_only=True)
class RepeatedLines(StageSettings):
    """Cut lines, or paragraphs, that many documents have, wherever they stand; spaces and case do not matter.

    A document of which nothing is left is dropped. As in CCNet (arXiv:1911.00359, section 3.1), which cuts paragraphs
    seen before.

    Attributes:
        kind: `repeated_lines`.
        unit: Cut lines, or paragraphs (between empty lines).
        min_documents: Number of documents with it from which a line is cut, 2 or more. Menus and notices stand in
            dozens; 2 removes every copy.
        min_characters: Shorter lines stay: brackets and headings repeat in good documents.
        keep: `none` cuts a line everywhere, `first` leaves it where it comes first.
    """

    kind: Literal["repeated_lines"] = "repeated_lines"
    unit: Literal["line", "paragraph"] = "line"
    min_documents: int = 20
    min_characters: int = 20
    keep: Literal["none", "first"] = "none"

    def __post_init__(self) -> None:
        if self.min_documents < 2:
            raise ValueError(f"min_documents={self.min_documents} would cut every line. Use 2 or more.")
        if self.min_characters < 1:
            raise ValueError(f"min_characters={self.min_characters} would cut empty lines. Use 1 or more.")

    def survey(self, documents: Iterable[Document], file: Path) -> None:
        """Count in how many documents of a partition each line is.

        Args:
            documents: Of the partition.
            file: To write.
        """
        counts = PieceCounts()
        for document in documents:
            lines, _ = self._split(document.text)
            counts.add(np.unique(_hashes(line for line in lines if self._is_long(line))))
        counts.write(file)

    def decide(self, surveys: Sequence[Path], folder: Path) -> None:
        """Write which lines are in enough documents.

        Args:
            surveys: Of the partitions, in order.
            folder: For the decisions.
        """
        write_repeats(surveys, folder, self.min_documents)

    def filter(self, context: Context) -> Filter:
        """The cutter of a partition's documents; `context.counts` learns how much was cut.

        Args:
            context: Of the partition.
        """
        repeats = Repeats(context.folder, context.partition)

        def cut(document: Document) -> Verdict:
            lines, separators = self._split(document.text)
            long_lines = [place for place, line in enumerate(lines) if self._is_long(line)]
            is_repeat, is_first = repeats.find(_hashes(lines[place] for place in long_lines))
            if self.keep == "first":
                is_repeat &= ~is_first
            gone = {long_lines[index] for index in np.flatnonzero(is_repeat).tolist()}
            if not gone:
                return document
            context.counts[f"{self.unit}s cut"] += len(gone)
            pairs = enumerate(zip(lines, separators, strict=True))
            text = "".join(line + separator for place, (line, separator) in pairs if place not in gone).strip("\n")
            return document.with_text(text) if text.strip() else Dropped(document, REASON)

        return cut

    def _is_long(self, line: str) -> bool:
        return len(line.strip()) >= self.min_characters

    def _split(self, text: str) -> tuple[list[str], list[str]]:
        """Lines and what follows each."""
        pieces = [*_SEPARATORS[self.unit].split(text), ""]
        return pieces[::2], pieces[1::2]


def _hashes(lines: Iterable[str]) -> Hashes:
    contents = (normalized(line).encode("utf-8", "surrogatepass") for line in lines)
    digests = b"".join(hashlib.blake2b(content, digest_size=8).digest() for content in contents)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)
