"""Hashes of words and of n-grams for many texts at once; deduplication and decontamination compare texts by them.

A word is a run of letters and digits. Case, accents, punctuation and the width of letters do not matter, and characters
of scripts that put no spaces between words (Chinese, Japanese, Thai, ...) are words by themselves. Every character has
one normal form, found in a table, so a word's place in the text is known to the character.

The hash of a word is a polynomial over its characters modulo 2^64, read off prefix sums of the whole batch, and mixed;
the hash of an n-gram is the same over words. It does not depend on the process, the platform or the batch.
"""

import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from lmstack.prep.document import Document

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

BATCH_CHARACTERS = 1 << 15

_SEPARATOR = 0
_IGNORED = 0xFFFFFFFF
_ALONE = 1 << 31
_LAST_NORMALIZED = 0x1FFFF
"""Beyond are rare Chinese characters, which are their own normal form, and tags, which are no letters."""

_SCRIPTS_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # Chinese iteration mark, closing mark, zero
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x9FFF),  # Chinese
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)

_CHARACTER_BASE = 0x9E3779B97F4A7C15
_WORD_BASE = 0xD6E8FEB86659FD93


@dataclass(frozen=True)
class Words:
    """The words of some texts.

    Attributes:
        hashes: One for each word of all the texts, in order.
        starts: The first character of each word, counted from the start of its text.
        stops: One past its last character.
        offsets: The words of text i are `offsets[i]` to `offsets[i + 1]`.
    """

    hashes: Hashes
    starts: Places
    stops: Places
    offsets: Places

    def num_words(self) -> Places:
        """Words of each text."""
        return np.diff(self.offsets)


def split_words(texts: Sequence[str]) -> Words:
    """Find and hash the words of texts.

    Args:
        texts: Together about `BATCH_CHARACTERS` is fastest; memory grows with their length.
    """
    joined = "\n".join(texts) + "\n"
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    first_characters = np.concatenate(([0], np.cumsum([len(text) + 1 for text in texts], dtype=np.int64)))
    characters = _normal_forms().take(codes)
    is_ignored = characters == _IGNORED
    places = np.flatnonzero(~is_ignored) if is_ignored.any() else None
    if places is not None:
        characters = characters[places]
    is_word = characters != _SEPARATOR
    is_alone = characters >= _ALONE
    is_start = is_word.copy()
    is_start[1:] &= ~is_word[:-1] | is_alone[1:] | is_alone[:-1]
    is_last = is_word  # every text ends with a separator, so the word that is cut off here is none
    is_last[:-1] &= ~is_word[1:] | is_start[1:]
    starts, lasts = np.flatnonzero(is_start), np.flatnonzero(is_last)
    hashes = _mix(_polynomials(characters.astype(np.uint64), starts, lasts + 1, _CHARACTER_BASE))
    if places is not None:
        starts, lasts = places[starts], places[lasts]
    offsets = np.searchsorted(starts, first_characters)
    before = np.repeat(first_characters[:-1], np.diff(offsets))
    return Words(hashes, starts - before, lasts + 1 - before, offsets)


def ngram_hashes(words: Words, n: int) -> tuple[Hashes, Places]:
    """Hash every n words in a row, text by text; a text with fewer words has one n-gram of all it has, if any.

    Args:
        words: Of some texts.
        n: Words of an n-gram, 1 or more.

    Returns:
        The hashes in order, and where each text begins among them: n-gram k of a text starts at its word k.
    """
    counts = words.num_words()
    num_ngrams = np.where(counts >= n, counts - n + 1, np.minimum(counts, 1))
    offsets = np.concatenate(([0], np.cumsum(num_ngrams)))
    starts = np.arange(offsets[-1]) + np.repeat(words.offsets[:-1] - offsets[:-1], num_ngrams)
    stops = np.minimum(starts + n, np.repeat(words.offsets[1:], num_ngrams))
    return _mix(_polynomials(words.hashes, starts, stops, _WORD_BASE)), offsets


def batches(documents: Iterable[Document], limit: int = BATCH_CHARACTERS) -> Iterator[list[Document]]:
    """Documents, as many at a time as have about `limit` characters.

    Args:
        documents: In order.
        limit: Characters of a batch; a longer document goes alone.
    """
    batch: list[Document] = []
    total = 0
    for document in documents:
        if batch and total + len(document.text) > limit:
            yield batch
            batch, total = [], 0
        batch.append(document)
        total += len(document.text)
    if batch:
        yield batch


def _polynomials(values: Hashes, starts: Places, stops: Places, base: int) -> Hashes:
    """Sum of `values[start + i] * base**i` modulo 2^64 for each stretch."""
    powers, inverses = _powers(max(1 << len(values).bit_length(), 2 * BATCH_CHARACTERS), base)
    sums = np.zeros(len(values) + 1, dtype=np.uint64)
    np.cumsum(values * powers[: len(values)], out=sums[1:])
    result: Hashes = (sums[stops] - sums[starts]) * inverses[starts]
    return result


def _mix(hashes: Hashes) -> Hashes:
    """Make every bit depend on every bit (the finalizer of splitmix64)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


@cache
def _powers(count: int, base: int) -> tuple[Hashes, Hashes]:
    """Powers of an odd base modulo 2^64, and their inverses."""
    powers, inverses = np.ones(count, dtype=np.uint64), np.ones(count, dtype=np.uint64)
    np.cumprod(np.full(count - 1, base, dtype=np.uint64), out=powers[1:])
    np.cumprod(np.full(count - 1, pow(base, -1, 1 << 64), dtype=np.uint64), out=inverses[1:])
    return powers, inverses


@cache
def _normal_forms() -> NDArray[np.uint32]:
    """The normal form of every code point."""
    table = np.zeros(sys.maxunicode + 1, dtype=np.uint32)
    for code in range(_LAST_NORMALIZED + 1):
        character = chr(code)
        if character.isalnum():
            table[code] = _base_letter(character)
        elif unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf"):
            table[code] = _IGNORED  # accents written apart, soft hyphens, joiners
    for first, last in _SCRIPTS_WITHOUT_SPACES:
        block = table[first : last + 1]
        if first > _LAST_NORMALIZED:
            block[:] = np.arange(first, last + 1)
        block[(block != _SEPARATOR) & (block != _IGNORED)] |= _ALONE
    return table


def _base_letter(character: str) -> int:
    """The letter without accent, case and width, where that is one letter; itself otherwise."""
    parts = [part for part in unicodedata.normalize("NFKD", character.lower()) if not unicodedata.combining(part)]
    is_letter = len(parts) == 1 and parts[0].isalnum()
    return ord(parts[0].lower()) if is_letter else ord(character)
