"""The n-grams of evaluation items, and where texts have them."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmstack.prep.evaluation_sets import Item
from lmstack.prep.ngrams import Hashes, Places, Words, ngram_hashes, split_words

ItemName = tuple[str, str]

_TABLE_BITS = 24
_ITEMS_AT_A_TIME = 256


class Hit(NamedTuple):
    """A stretch of words that a text shares with an item.

    Attributes:
        text: Which text.
        start: Its first word.
        stop: One past the last.
        item: Benchmark and name of the item.
    """

    text: int
    start: int
    stop: int
    item: ItemName


class _Short(NamedTuple):
    """A text of an item with fewer words than an n-gram."""

    num_words: int
    hash: int
    item: int


class ContaminationIndex:
    """The n-grams of evaluation items; shorter texts as a whole, found by their first words."""

    def __init__(self, items: Iterable[tuple[str, Item]], *, ngram: int, min_words: int) -> None:
        """Index items.

        Args:
            items: Benchmark and item.
            ngram: Words of an n-gram.
            min_words: Words of the shortest text that is indexed.
        """
        self._ngram, self._min_words = ngram, min_words
        self._names: list[ItemName] = []
        self._short: dict[int, list[_Short]] = defaultdict(list)
        self._num_items: Counter[str] = Counter()
        self._num_too_short: Counter[str] = Counter()
        hashes, owners = [np.empty(0, dtype=np.uint64)], [np.empty(0, dtype=np.int64)]
        remaining = iter(items)
        while batch := list(islice(remaining, _ITEMS_AT_A_TIME)):
            for found, owner in self._add(batch):
                hashes.append(found)
                owners.append(np.full(len(found), owner))
        order = np.argsort(all_hashes := np.concatenate(hashes), kind="stable")
        self._hashes, self._owners = all_hashes[order], np.concatenate(owners)[order]
        self._table = _table(self._hashes)
        self._short_hashes = np.array(sorted(self._short), dtype=np.uint64)

    @property
    def summaries(self) -> dict[str, dict[str, int]]:
        """By benchmark: how many items it has, and how many of them are too short to be looked for."""
        return {
            name: {"items": count, "items_too_short": self._num_too_short[name]}
            for name, count in self._num_items.items()
        }

    def find(self, words: Words) -> Iterator[Hit]:
        """Where texts share words with items.

        Args:
            words: Of the texts.
        """
        hashes, offsets = ngram_hashes(words, self._ngram)
        maybe = np.flatnonzero(self._table[hashes >> np.uint64(64 - _TABLE_BITS)])
        firsts = np.searchsorted(self._hashes, hashes[maybe], side="left")
        lasts = np.searchsorted(self._hashes, hashes[maybe], side="right")
        for index in np.flatnonzero(lasts > firsts).tolist():
            text, start = _text_and_word(offsets, int(maybe[index]))
            for owner in sorted(set(self._owners[firsts[index] : lasts[index]].tolist())):
                yield Hit(text, start, start + self._ngram, self._names[owner])
        yield from self._find_short(words)

    def _find_short(self, words: Words) -> Iterator[Hit]:
        if not len(self._short_hashes):
            return
        hashes, offsets = ngram_hashes(words, self._min_words)
        for place in np.flatnonzero(np.isin(hashes, self._short_hashes)).tolist():
            text, start = _text_and_word(offsets, place)
            first, stop = int(words.offsets[text]) + start, int(words.offsets[text + 1])
            for short in self._short[int(hashes[place])]:
                if first + short.num_words <= stop and _hash_of(words, first, short.num_words) == short.hash:
                    yield Hit(text, start, start + short.num_words, self._names[short.item])

    def _add(self, batch: list[tuple[str, Item]]) -> Iterator[tuple[Hashes, int]]:
        """The n-grams of each text of some items; short texts are put aside."""
        texts = [text for _, item in batch for text in item.texts]
        words = split_words(texts)
        hashes, offsets = ngram_hashes(words, self._ngram)
        prefixes, prefix_offsets = ngram_hashes(words, self._min_words)
        first = 0
        for benchmark, item in batch:
            owner = len(self._names)
            self._names.append((benchmark, item.name))
            self._num_items[benchmark] += 1
            own_texts = range(first, first + len(item.texts))
            first = own_texts.stop
            num_words = {text: int(words.offsets[text + 1] - words.offsets[text]) for text in own_texts}
            self._num_too_short[benchmark] += max(num_words.values(), default=0) < self._min_words
            for text, count in num_words.items():
                own = hashes[offsets[text] : offsets[text + 1]]
                if count >= self._ngram:
                    yield own, owner
                elif count >= self._min_words:
                    prefix = int(prefixes[prefix_offsets[text]])
                    self._short[prefix].append(_Short(count, int(own[0]), owner))


def _table(hashes: Hashes) -> NDArray[np.bool_]:
    """Which leading bits occur: most n-grams of a text are ruled out by one look."""
    table = np.zeros(1 << _TABLE_BITS, dtype=bool)
    table[hashes >> np.uint64(64 - _TABLE_BITS)] = True
    return table


def _text_and_word(offsets: Places, place: int) -> tuple[int, int]:
    text = int(np.searchsorted(offsets, place, side="right")) - 1
    return text, place - int(offsets[text])


def _hash_of(words: Words, first: int, count: int) -> int:
    stretch = slice(first, first + count)
    alone = Words(words.hashes[stretch], words.starts[stretch], words.stops[stretch], np.array([0, count]))
    return int(ngram_hashes(alone, count)[0][0])
