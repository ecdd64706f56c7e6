"""The repetition rules of Gopher, Rae et al. 2021, arXiv:2112.11446, appendix A.1.1 "Repetition Removal", table A1.

As in datatrove, what repeats is what occurred before: the first of two equal lines or n-grams does not count. Shares of
n-grams are of the characters of words, without the spaces between them.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

import numpy as np

from lmstack.prep.document import Document
from lmstack.prep.quality.rules import Measure, RuleStage
from lmstack.prep.quality.units import Unit, share, units

TOP = {2: 0.20, 3: 0.18, 4: 0.16}
DUPLICATE = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, kw_only=True)
class Repetition(RuleStage):
    """Drops texts that say the same thing over and over.

    Attributes:
        kind: `repetition`.
        unit: What an n-gram is made of: words between spaces, or characters. A Chinese word has about two characters:
            there, double the n of the tables.
        max_duplicate_lines: Largest share of lines that occurred before.
        max_duplicate_line_characters: The same, of characters.
        max_duplicate_paragraphs: Largest share of paragraphs that occurred before.
        max_duplicate_paragraph_characters: The same, of characters.
        top: By n, largest share of characters in the most frequent n-gram.
        duplicate: By n, largest share of characters in n-grams that occurred before, each character counted once.
    """

    kind: Literal["repetition"] = "repetition"
    unit: Unit = "words"
    max_duplicate_lines: float = 0.30
    max_duplicate_line_characters: float = 0.20
    max_duplicate_paragraphs: float = 0.30
    max_duplicate_paragraph_characters: float = 0.20
    top: dict[int, float] = field(default_factory=lambda: dict(TOP))
    duplicate: dict[int, float] = field(default_factory=lambda: dict(DUPLICATE))

    def __post_init__(self) -> None:
        if min((*self.top, *self.duplicate, 2)) < 2:
            raise ValueError(f"repetition: n-grams of top={self.top}, duplicate={self.duplicate} begin at 2.")

    def measures(self, document: Document) -> Iterator[Measure]:
        """Every figure of a document.

        Args:
            document: Which.
        """
        text = document.text
        lines, in_lines = duplicate_shares([line for line in text.split("\n") if line.strip()])
        yield Measure("duplicate lines", lines, high=self.max_duplicate_lines)
        yield Measure("characters in duplicate lines", in_lines, high=self.max_duplicate_line_characters)
        paragraphs, in_paragraphs = duplicate_shares([part for part in text.split("\n\n") if part.strip()])
        yield Measure("duplicate paragraphs", paragraphs, high=self.max_duplicate_paragraphs)
        yield Measure("characters in duplicate paragraphs", in_paragraphs, high=self.max_duplicate_paragraph_characters)
        ids, lengths = _numbered(units(text, self.unit))
        for n, threshold in sorted(self.top.items()):
            yield Measure(f"top {n}-gram", top_share(ids, lengths, n), high=threshold)
        for n, threshold in sorted(self.duplicate.items()):
            yield Measure(f"duplicate {n}-grams", duplicate_ngram_share(ids, lengths, n), high=threshold)


def duplicate_shares(pieces: Sequence[str]) -> tuple[float, float]:
    """Share of pieces that occurred before, and of their characters.

    Args:
        pieces: Lines or paragraphs.
    """
    seen: set[str] = set()
    number = characters = 0
    for piece in pieces:
        if piece in seen:
            number += 1
            characters += len(piece)
        seen.add(piece)
    return share(number, len(pieces)), share(characters, sum(map(len, pieces)))


def top_share(ids: np.ndarray, lengths: np.ndarray, n: int) -> float:
    """Share of characters in the n-gram that covers most of them; 0 where none occurs twice.

    Args:
        ids: A number for each word, from 1, equal for equal words.
        lengths: Characters of each word.
        n: Words of an n-gram.
    """
    if len(ids) < n or not _any_twice(grams := _ngrams(ids, n)):
        return 0.0
    _, first, counts = np.unique(grams, return_index=True, return_counts=True)
    in_gram = np.convolve(lengths, np.ones(n, dtype=np.int64), "valid")[first]
    covered = np.where(counts > 1, counts * in_gram, 0)
    return share(float(covered.max()), float(lengths.sum()))


def duplicate_ngram_share(ids: np.ndarray, lengths: np.ndarray, n: int) -> float:
    """Share of characters in n-grams that occurred before; where they overlap, characters count once.

    Args:
        ids: A number for each word, from 1, equal for equal words.
        lengths: Characters of each word.
        n: Words of an n-gram.
    """
    if len(ids) <= n or not _any_twice(grams := _ngrams(ids, n)):
        return 0.0
    _, first = np.unique(grams, return_index=True)
    is_repeat = np.ones(len(grams), dtype=np.int64)
    is_repeat[first] = 0
    covered = np.convolve(is_repeat, np.ones(n, dtype=np.int64)) > 0
    return share(float(lengths[covered].sum()), float(lengths.sum()))


def _numbered(words: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """A number for each word, from 1 in the order in which they first occur, and its length."""
    numbers: dict[str, int] = defaultdict(count(1).__next__)
    ids = np.fromiter(map(numbers.__getitem__, words), dtype=np.uint64, count=len(words))
    return ids, np.fromiter(map(len, words), dtype=np.int64, count=len(words))


def _any_twice(grams: np.ndarray) -> bool:
    """Whether any value is there twice; most texts are told so at a fraction of what `np.unique` with indices costs."""
    ordered = np.sort(grams)
    return bool((ordered[1:] == ordered[:-1]).any())


def _ngrams(ids: np.ndarray, n: int) -> np.ndarray:
    """A 64-bit polynomial hash of every n-gram; arithmetic wraps around."""
    length = len(ids) - n + 1
    hashes = np.zeros(length, dtype=np.uint64)
    for k in range(n):
        hashes += ids[k : k + length]
        hashes *= _MIX
    return hashes
