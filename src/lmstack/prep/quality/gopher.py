"""The quality rules of Gopher, Rae et al. 2021, arXiv:2112.11446, appendix A.1.1 "Quality Filtering"."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lmstack.prep.document import Document
from lmstack.prep.quality.rules import Measure, RuleStage
from lmstack.prep.quality.units import Unit, lines_of, share, total_length, units

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_CHINESE_FUNCTION = frozenset("的是了在不和有我他这")
_PUNCTUATION = re.compile(r"[^\w\s]|_")
_ELLIPSES = ("...", "…")
_BULLETS = ("•", "-", "*", "●", "·")


@dataclass(frozen=True, kw_only=True)
class Gopher(RuleStage):
    """Drops what is too short, too long, or does not look like prose.

    The defaults are the paper's. For Chinese, `unit: characters` with the settings of conf/corpus/dirty.yaml, which are
    this project's: a text is counted in characters, its stop words are function characters, and there is a limit on
    the share of punctuation.

    Attributes:
        kind: `gopher`.
        unit: Words between spaces, or characters.
        min_units: Fewest words or characters.
        max_units: Most of them.
        min_mean_length: Shortest mean length of a word, in characters; not used with characters.
        max_mean_length: Longest mean length of a word; not used with characters.
        max_symbols: Most hash signs, and most ellipses, per word.
        max_bullet_lines: Largest share of lines that begin with a bullet.
        max_ellipsis_lines: Largest share of lines that end with an ellipsis.
        min_alphabetic: Smallest share of words with a letter in them.
        min_stop_words: Fewest different stop words: `the be to of and that have with`, in Chinese 的是了在不和有我他这.
            Case does not matter, so that a text in capitals is not taken for one without coherent English.
        max_punctuation: Largest share of punctuation among the characters; 1 is no limit.
    """

    kind: Literal["gopher"] = "gopher"
    unit: Unit = "words"
    min_units: int = 50
    max_units: int = 100_000
    min_mean_length: float = 3.0
    max_mean_length: float = 10.0
    max_symbols: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic: float = 0.8
    min_stop_words: int = 2
    max_punctuation: float = 1.0

    def measures(self, document: Document) -> Iterator[Measure]:
        """Every figure of a document, in the order of the paper.

        Args:
            document: Which.
        """
        text = document.text
        words = units(text, self.unit)
        what = self.unit
        yield Measure(f"too few {what}", len(words), low=self.min_units)
        yield Measure(f"too many {what}", len(words), high=self.max_units)
        if self.unit == "words":
            mean = share(total_length(words), len(words))
            yield Measure("words too short", mean, low=self.min_mean_length)
            yield Measure("words too long", mean, high=self.max_mean_length)
        yield Measure("too many hash signs", share(text.count("#"), len(words)), high=self.max_symbols)
        ellipses = text.count("...") + text.count("…")
        yield Measure("too many ellipses", share(ellipses, len(words)), high=self.max_symbols)
        lines = lines_of(text)
        bullets = sum(line.startswith(_BULLETS) for line in lines)
        yield Measure("bullet lines", share(bullets, len(lines)), high=self.max_bullet_lines)
        trailing = sum(line.endswith(_ELLIPSES) for line in lines)
        yield Measure("lines that end in an ellipsis", share(trailing, len(lines)), high=self.max_ellipsis_lines)
        alphabetic = sum(1 for word in words if word.isalpha() or any(map(str.isalpha, word)))
        yield Measure(f"too few alphabetic {what}", share(alphabetic, len(words)), low=self.min_alphabetic)
        yield Measure("too few stop words", self._count_stop_words(text), low=self.min_stop_words)
        if self.max_punctuation < 1:
            found = share(len(_PUNCTUATION.findall(text)), len(text))
            yield Measure("too much punctuation", found, high=self.max_punctuation)

    def _count_stop_words(self, text: str) -> int:
        if self.unit == "characters":
            return sum(character in text for character in _CHINESE_FUNCTION)
        return len(STOP_WORDS.intersection(text.lower().split()))
