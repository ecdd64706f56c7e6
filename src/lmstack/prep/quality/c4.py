"""The rules of C4, Raffel et al. 2020, arXiv:1910.10683, section 2.2: lines first, then what is left of the page."""

import re
from dataclasses import dataclass
from typing import Literal

from lmstack.prep.document import Document, Dropped, Verdict
from lmstack.prep.quality.units import TERMINAL, Unit, count_sentences, count_units
from lmstack.prep.stage import Context, Filter, StageSettings

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]", re.IGNORECASE)
POLICY_PHRASES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
    "使用条款",
    "隐私政策",
    "版权所有",
    "未经许可",
)
"""Boilerplate that sites put under every page; the last four are this project's, for Chinese pages."""


@dataclass(frozen=True, kw_only=True)
class C4(StageSettings):
    """Keeps lines that look like sentences, and pages with enough of them.

    The defaults are those of the paper's last version and of C4's own code. FineWeb used 5 sentences and 3 words, the
    same two numbers the other way round (datatrove's filter, version 0.10).

    Attributes:
        kind: `c4`.
        unit: Words between spaces, or characters.
        lines_end_in_punctuation: Whether lines without punctuation at their end are removed; C4 does, FineWeb
            (arXiv:2406.17557, section 3.5) leaves this rule out, as it removes 30 % of all tokens.
        min_units_per_line: Lines with fewer words or characters are removed.
        max_word_length: Lines with a longer word are removed; 0 for no limit. From C4's code, not in the paper.
        min_sentences: Pages with fewer are dropped.
    """

    kind: Literal["c4"] = "c4"
    unit: Unit = "words"
    lines_end_in_punctuation: bool = True
    min_units_per_line: int = 5
    max_word_length: int = 1000
    min_sentences: int = 3

    def filter(self, context: Context) -> Filter:
        """The function that judges.

        Args:
            context: Of the partition.
        """

        def judge(document: Document) -> Verdict:
            lowered = document.text.lower()
            if "lorem ipsum" in lowered:
                return Dropped(document, "lorem ipsum", "the words occur")
            if "{" in document.text:
                return Dropped(document, "curly bracket", "the page holds code")
            kept = []
            for line in _CITATION.sub("", document.text).split("\n"):
                reason = self.line_fault(line.strip())
                if reason:
                    context.counts[f"lines removed: {reason}"] += 1
                else:
                    kept.append(line.strip())
            text = "\n".join(kept)
            if (sentences := count_sentences(text)) < self.min_sentences:
                return Dropped(document, "too few sentences", f"{sentences}, less than {self.min_sentences}")
            return document.with_text(text)

        return judge

    def line_fault(self, line: str) -> str:
        """Why a line is removed; empty when it stays.

        Args:
            line: Without white space at its ends.
        """
        may_be_long = self.unit == "words" and 0 < self.max_word_length < len(line)
        if may_be_long and max(map(len, line.split())) > self.max_word_length:
            return "a very long word"
        if self.lines_end_in_punctuation and (not line.endswith(TERMINAL) or line.endswith("...")):
            return "no punctuation at the end"
        if count_units(line, self.unit) < self.min_units_per_line:
            return f"few {self.unit}"
        lowered = line.lower()
        if "javascript" in lowered:
            return "javascript"
        return "policy" if any(phrase in lowered for phrase in POLICY_PHRASES) else ""
