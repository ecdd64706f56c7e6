"""Random permutations without a table, and the random words they are made from."""

import numpy as np
from jaxtyping import Int64, UInt64

_FEISTEL_ROUNDS = 12
"""With 6, permutations of five things are visibly uneven."""


def permute(index: Int64[np.ndarray, " N"], key: UInt64[np.ndarray, " N"], size: int) -> Int64[np.ndarray, " N"]:
    """Where a random permutation of `range(size)` sends each index, without a table.

    A Feistel network over the next power of two; what falls outside is sent on until it falls inside.

    Args:
        index: What to send, below `size`.
        key: Which permutation.
        size: Number of things permuted.
    """
    bits = max(2, (size - 1).bit_length())
    low_bits = np.uint64(bits // 2)
    high_bits = np.uint64(bits) - low_bits
    values = index.astype(np.uint64)
    todo = np.arange(len(values))
    while len(todo):
        values[todo] = _feistel(values[todo], key[todo], low_bits, high_bits)
        todo = todo[values[todo] >= size]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, key: np.ndarray, low_bits: np.uint64, high_bits: np.uint64) -> np.ndarray:
    one = np.uint64(1)
    low_mask, high_mask = (one << low_bits) - one, (one << high_bits) - one
    low, high = values & low_mask, values >> low_bits
    for _ in range(_FEISTEL_ROUNDS // 2):
        key = mix(key)
        low = low ^ (mix(high ^ key) & low_mask)
        key = mix(key)
        high = high ^ (mix(low ^ key) & high_mask)
    return (high << low_bits) | low


def mix(x: UInt64[np.ndarray, " N"]) -> UInt64[np.ndarray, " N"]:
    """A bijection of 64-bit words whose output bits depend on all input bits (Steele et al. 2014, SplitMix64).

    Args:
        x: Words.
    """
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def key_of(seed: int, stream: Int64[np.ndarray, " N"], epoch: Int64[np.ndarray, " N"]) -> UInt64[np.ndarray, " N"]:
    """A random word for each epoch of each stream of a seed.

    Args:
        seed: Any integer.
        stream: What the words are for.
        epoch: Which time.
    """
    base = np.full(len(epoch), seed % 2**64, dtype=np.uint64)
    return mix(mix(mix(base) ^ stream.astype(np.uint64)) ^ epoch.astype(np.uint64))
