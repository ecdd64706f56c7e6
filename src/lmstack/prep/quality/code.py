"""Rules for source code: the basic filters of StarCoder2, Lozhkov et al. 2024, arXiv:2402.19173, section 2.1.

Those on long lines come from Codex (arXiv:2107.03374, section 3.1), that on letters from StarCoder (arXiv:2305.06161,
section 3.1).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lmstack.prep.document import Document
from lmstack.prep.quality.rules import Measure, RuleStage
from lmstack.prep.quality.units import share, total_length

_GENERATED = re.compile(
    r"auto-?generated|automatically generated|generated automatically|this file is generated", re.IGNORECASE
)
_HEAD_LINES = 5
_ENCODED = re.compile(
    r"[A-Za-z0-9+/=]{64,}(?:\n[A-Za-z0-9+/=]{64,})*"
    r"|(?:\b(?:0x|\\x)?[0-9a-fA-F]{2}\b(?:,|\s*)){8,}"
    r"|(?:\\u[0-9a-fA-F]{4}){8,}"
)
"""64 characters of base64, 8 bytes in hexadecimal, or 8 escaped characters, and more."""


@dataclass(frozen=True, kw_only=True)
class Code(RuleStage):
    """Drops files that nobody wrote: generated, minified, or data in the form of code.

    Attributes:
        kind: `code`.
        max_mean_line: Longest mean line, in characters.
        max_line: Longest line.
        min_alphabetic: Smallest share of letters among the characters.
        max_encoded_run: Longest run of base64, hexadecimal bytes or escaped characters, in characters.
        max_encoded: Largest share of characters in such runs.
        min_lines: Fewest lines that are not blank; this project's, as a file of two lines teaches little.
    """

    kind: Literal["code"] = "code"
    max_mean_line: float = 100.0
    max_line: int = 1000
    min_alphabetic: float = 0.25
    max_encoded_run: int = 1024
    max_encoded: float = 0.5
    min_lines: int = 3

    def measures(self, document: Document) -> Iterator[Measure]:
        """Every figure of a document.

        Args:
            document: Which.
        """
        text = document.text
        lines = [line for line in text.split("\n") if line.strip()]
        yield Measure("too few lines of code", len(lines), low=self.min_lines)
        yield Measure("generated code", bool(_GENERATED.search("\n".join(lines[:_HEAD_LINES]))), high=0)
        yield Measure("a very long line", max(map(len, lines), default=0), high=self.max_line)
        yield Measure("long lines", share(total_length(lines), len(lines)), high=self.max_mean_line)
        yield Measure("too few letters", share(sum(map(str.isalpha, text)), len(text)), low=self.min_alphabetic)
        encoded = [match[0] for match in _ENCODED.finditer(text)]
        yield Measure("encoded data", max(map(len, encoded), default=0), high=self.max_encoded_run)
        yield Measure("much encoded data", share(total_length(encoded), len(text)), high=self.max_encoded)
