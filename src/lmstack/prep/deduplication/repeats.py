"""Counting the pieces of a corpus (lines, paragraphs, runs of words) in a memory that hardly grows with it.

A survey holds the hashes of a partition's pieces, each once, sorted, with how often it occurs. They are merged range by
range of hash values, so only a small share of them is in memory at a time.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmstack.prep.deduplication.arrays import ArrayFile, write_arrays
from lmstack.prep.ngrams import Hashes

Counts = NDArray[np.uint32]

_REPEATS_FILE = "repeats.safetensors"
_RANGE_BITS = 8
_FEWEST_MERGED = 1 << 20


class PieceCounts:
    """The pieces of a partition while it is surveyed."""

    def __init__(self) -> None:
        """Without pieces."""
        self._hashes: Hashes = np.empty(0, dtype=np.uint64)
        self._counts: Counts = np.empty(0, dtype=np.uint32)
        self._pending: list[Hashes] = []
        self._num_pending = 0

    def add(self, hashes: Hashes) -> None:
        """Count pieces.

        Args:
            hashes: Of pieces, one for each time it counts.
        """
        self._pending.append(hashes)
        self._num_pending += len(hashes)
        if self._num_pending > max(len(self._hashes), _FEWEST_MERGED):
            self._merge()

    def write(self, file: Path) -> None:
        """Write the survey of the partition.

        Args:
            file: To write.
        """
        self._merge()
        edges = np.arange(1, 1 << _RANGE_BITS, dtype=np.uint64) << np.uint64(64 - _RANGE_BITS)
        ranges = [0, *np.searchsorted(self._hashes, edges), len(self._hashes)]
        write_arrays(file, {"hashes": self._hashes, "counts": self._counts, "ranges": np.array(ranges, dtype=np.int64)})

    def _merge(self) -> None:
        ones = np.ones(self._num_pending, dtype=np.uint32)
        hashes = np.concatenate([self._hashes, *self._pending])
        self._hashes, self._counts, _ = _sum_by_hash(hashes, np.concatenate((self._counts, ones)))
        self._pending, self._num_pending = [], 0


def _sum_by_hash(hashes: Hashes, counts: Counts) -> tuple[Hashes, Counts, NDArray[np.int64]]:
    """The hashes each once and sorted, their counts added up, and where each came first."""
    order = np.argsort(hashes, kind="stable")
    hashes, firsts = np.unique(hashes[order], return_index=True)
    if len(hashes):
        counts = np.add.reduceat(counts[order], firsts, dtype=np.uint32)
    return hashes, counts, order[firsts]


def write_repeats(surveys: Sequence[Path], folder: Path, min_count: int) -> None:
    """Merge surveys into the pieces that occur often enough.

    Args:
        surveys: Of the partitions, in order.
        folder: For the decisions.
        min_count: Least number of times.
    """
    files = [ArrayFile(survey) for survey in surveys]
    ranges = [file.read("ranges") for file in files]
    found = []
    for index in range(1 << _RANGE_BITS):
        limits = [(int(each[index]), int(each[index + 1])) for each in ranges]
        parts = [file.read("hashes", *limit) for file, limit in zip(files, limits, strict=True)]
        counts = [file.read("counts", *limit) for file, limit in zip(files, limits, strict=True)]
        owners = np.repeat(np.arange(len(files), dtype=np.uint32), [len(part) for part in parts])
        hashes, totals, firsts = _sum_by_hash(np.concatenate(parts), np.concatenate(counts))
        often = totals >= min_count
        found.append((hashes[often], totals[often], owners[firsts[often]]))
    arrays = dict(zip(("hashes", "counts", "partitions"), map(np.concatenate, zip(*found, strict=True)), strict=True))
    write_arrays(folder / _REPEATS_FILE, arrays)


class Repeats:
    """The pieces that occur often, and which of their occurrences in a partition comes first in the corpus."""

    def __init__(self, folder: Path, partition: int) -> None:
        """Read the decisions.

        Args:
            folder: Where `write_repeats` wrote.
            partition: Index of the partition whose pieces are looked up, in order.
        """
        file = ArrayFile(folder / _REPEATS_FILE)
        self._hashes = file.read("hashes")
        self._is_first = file.read("partitions") == partition

    def find(self, hashes: Hashes) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Look pieces up; what comes first is known from the order of the calls.

        Args:
            hashes: Of pieces.

        Returns:
            Which are repeated, and which of those come first in the corpus.
        """
        is_repeat = np.zeros(len(hashes), dtype=bool)
        is_first = np.zeros(len(hashes), dtype=bool)
        if len(self._hashes):
            places = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
            is_repeat = self._hashes[places] == hashes
            candidates = np.flatnonzero(is_repeat & self._is_first[places])
            _, earliest = np.unique(places[candidates], return_index=True)
            is_first[candidates[earliest]] = True
            self._is_first[places[candidates]] = False
        return is_repeat, is_first
