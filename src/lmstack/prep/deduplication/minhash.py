"""MinHash signatures and their bands: near-duplicates share a band with a probability that is known.

Broder 1997; locality-sensitive hashing by bands as in Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", 3.4.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lmstack.prep.ngrams import Hashes, Places, ngram_hashes, split_words

Shingles = NDArray[np.uint32]

_BAND_BASE = np.uint64(0x9E3779B97F4A7C15)


def candidate_prob(similarity: float, *, num_bands: int, rows_per_band: int) -> float:
    """Probability that two documents share a band: 1 - (1 - s^r)^b, an S-shaped curve.

    Args:
        similarity: Their Jaccard similarity s, in [0, 1].
        num_bands: Bands b.
        rows_per_band: Hashes of a band r.
    """
    return 1.0 - (1.0 - similarity**rows_per_band) ** num_bands


def shingle_sets(texts: Sequence[str], ngram: int) -> tuple[Shingles, Places]:
    """The set of n-grams of each text, as sorted 32-bit hashes.

    Args:
        texts: To compare.
        ngram: Words of an n-gram.

    Returns:
        The sets one after another, and where each begins.
    """
    hashes, offsets = ngram_hashes(split_words(texts), ngram)
    owners = np.repeat(np.arange(len(texts), dtype=np.uint64), np.diff(offsets))
    keys = np.sort(owners << np.uint64(32) | hashes >> np.uint64(32))
    is_new = np.ones(len(keys), dtype=bool)
    is_new[1:] = keys[1:] != keys[:-1]
    keys = keys[is_new]
    first_keys = np.arange(len(texts) + 1, dtype=np.uint64) << np.uint64(32)
    return keys.astype(np.uint32), np.searchsorted(keys, first_keys).astype(np.int64)


def jaccard(left: Shingles, right: Shingles) -> float:
    """Jaccard similarity of two sets: what both have over what either has.

    Args:
        left: A sorted set.
        right: Another; one of them is not empty.
    """
    both = np.sort(np.concatenate((left, right)), kind="stable")  # merges the two runs
    num_shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return num_shared / (len(both) - num_shared)


def signatures(shingles: Shingles, offsets: Places, *, num_hashes: int, seed: int) -> NDArray[np.uint32]:
    """The least value of each of `num_hashes` hash functions over each set; an empty set has the greatest value.

    The functions are x -> a x + b modulo 2^32 with odd a, each a permutation of the 32-bit hashes, which are well mixed
    before.

    Args:
        shingles: Sets one after another.
        offsets: Where each begins, and the end.
        num_hashes: Functions.
        seed: Of the functions.
    """
    draw = np.random.Generator(np.random.PCG64(seed))
    factors, terms = draw.integers(0, 1 << 32, size=(2, num_hashes), dtype=np.uint32)
    result = np.full((num_hashes, len(offsets) - 1), np.iinfo(np.uint32).max, dtype=np.uint32)
    has_any = np.flatnonzero(np.diff(offsets))
    values = np.empty_like(shingles)
    for row, factor, term in zip(result, factors | np.uint32(1), terms, strict=True):
        if len(has_any):
            np.multiply(shingles, factor, out=values)
            np.add(values, term, out=values)
            row[has_any] = np.minimum.reduceat(values, offsets[:-1][has_any])
    return result.T


def band_keys(signature_rows: NDArray[np.uint32], num_bands: int) -> Hashes:
    """One hash for each band of each signature: documents are candidates when they agree in any.

    Args:
        signature_rows: Signatures, one a row.
        num_bands: Bands; it divides the length of a signature.

    Returns:
        Keys, a row for each band and a column for each document.
    """
    bands = signature_rows.reshape(len(signature_rows), num_bands, -1).astype(np.uint64)
    keys = np.zeros(bands.shape[:2], dtype=np.uint64)
    for position in range(bands.shape[2]):
        keys = (keys ^ bands[:, :, position]) * _BAND_BASE
        keys ^= keys >> np.uint64(29)
    return keys.T
