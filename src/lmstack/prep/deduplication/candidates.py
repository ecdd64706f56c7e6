"""From band keys to verified pairs of near-duplicates, band by band and pair by pair."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lmstack.prep.deduplication.arrays import ArrayFile
from lmstack.prep.deduplication.clusters import Edge
from lmstack.prep.deduplication.minhash import Shingles, jaccard
from lmstack.prep.ngrams import Hashes

_NUM_LEADERS = 16
"""Within documents that share a band each is compared with the first this many by rank, so a template shared by a
million pages costs millions of comparisons and not their square. Groups of up to 17 are compared in full."""

_CACHED_SETS = 4096


def candidate_pairs(surveys: Sequence[ArrayFile], ranks: NDArray[np.int64], num_bands: int) -> NDArray[np.uint64]:
    """Pairs of documents that share a band, each once, sorted.

    Args:
        surveys: With `bands` of each partition's documents.
        ranks: Place of each document in the order of preference.
        num_bands: Bands.

    Returns:
        The rank of the preferred document in the upper 32 bits, that of the other in the lower.
    """
    pairs = np.empty(0, dtype=np.uint64)
    for band in range(num_bands):
        keys = np.concatenate([survey.read("bands", band, band + 1)[0] for survey in surveys])
        pairs = np.union1d(pairs, _pairs_of_band(keys, ranks))
    return pairs


def _pairs_of_band(keys: Hashes, ranks: NDArray[np.int64]) -> NDArray[np.uint64]:
    order = np.lexsort((ranks, keys))
    keys, ranks = keys[order], ranks[order].astype(np.uint64)
    is_first = np.ones(len(keys), dtype=bool)
    is_first[1:] = keys[1:] != keys[:-1]
    firsts = np.maximum.accumulate(np.where(is_first, np.arange(len(keys)), 0))
    depth = np.arange(len(keys)) - firsts
    found = []
    for leader in range(_NUM_LEADERS):
        others = np.flatnonzero(depth > leader)
        found.append(ranks[firsts[others] + leader] << np.uint64(32) | ranks[others])
    return np.concatenate(found)


def verify(
    surveys: Sequence[ArrayFile], pairs: NDArray[np.uint64], by_rank: NDArray[np.int64], threshold: float
) -> Iterator[Edge]:
    """The pairs whose true Jaccard similarity reaches the threshold, as ranks.

    Args:
        surveys: With `shingles` and `offsets` of each partition's documents.
        pairs: From `candidate_pairs`.
        by_rank: The document of each rank, counted through the partitions.
        threshold: Least similarity, in (0, 1].
    """
    offsets = [survey.read("offsets") for survey in surveys]
    first_documents = np.cumsum([0] + [len(each) - 1 for each in offsets])
    sizes = np.concatenate([np.diff(each) for each in offsets])

    @lru_cache(maxsize=_CACHED_SETS)
    def shingles(document: int) -> Shingles:
        partition = int(np.searchsorted(first_documents, document, side="right")) - 1
        start, stop = offsets[partition][document - first_documents[partition] :][:2]
        return surveys[partition].read("shingles", int(start), int(stop))

    left, right = pairs >> np.uint64(32), pairs & np.uint64(0xFFFFFFFF)
    smaller, larger = np.sort((sizes[by_rank[left]], sizes[by_rank[right]]), axis=0)
    possible = (smaller > 0) & (smaller >= threshold * larger)
    for first, second in zip(left[possible].tolist(), right[possible].tolist(), strict=True):
        similarity = jaccard(shingles(int(by_rank[first])), shingles(int(by_rank[second])))
        if similarity >= threshold:
            yield Edge(first, second, similarity)
