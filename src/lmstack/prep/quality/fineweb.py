"""The rules that FineWeb added, Penedo et al. 2024, arXiv:2406.17557, section 3.6."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lmstack.prep.document import Document
from lmstack.prep.quality.repetition import duplicate_shares
from lmstack.prep.quality.rules import Measure, RuleStage
from lmstack.prep.quality.units import TERMINAL, Unit, count_units, lines_of, share


@dataclass(frozen=True, kw_only=True)
class FineWeb(RuleStage):
    """Drops lists, menus and pages of repeated lines.

    Attributes:
        kind: `fineweb`.
        unit: Words between spaces, or characters.
        min_punctuated_lines: Smallest share of lines that end in punctuation.
        max_short_lines: Largest share of short lines.
        short_line: Most characters of a short line.
        max_duplicate_line_characters: Largest share of characters in lines that occurred before. The paper says 0.1;
            the filter that FineWeb was made with (datatrove's, version 0.10) has 0.01, which is the default here.
        max_line_breaks: Most line breaks per word; from the same filter, not in the paper.
    """

    kind: Literal["fineweb"] = "fineweb"
    unit: Unit = "words"
    min_punctuated_lines: float = 0.12
    max_short_lines: float = 0.67
    short_line: int = 30
    max_duplicate_line_characters: float = 0.01
    max_line_breaks: float = 0.3

    def measures(self, document: Document) -> Iterator[Measure]:
        """Every figure of a document.

        Args:
            document: Which.
        """
        lines = lines_of(document.text)
        punctuated = sum(line.endswith(TERMINAL) for line in lines)
        yield Measure("lines without punctuation", share(punctuated, len(lines)), low=self.min_punctuated_lines)
        short = sum(len(line) <= self.short_line for line in lines)
        yield Measure("short lines", share(short, len(lines)), high=self.max_short_lines)
        _, duplicate = duplicate_shares(lines)
        yield Measure("characters in duplicate lines", duplicate, high=self.max_duplicate_line_characters)
        breaks = share(document.text.count("\n"), count_units(document.text, self.unit))
        yield Measure("line breaks", breaks, high=self.max_line_breaks)
