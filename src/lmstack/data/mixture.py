"""Which row of which source comes at a position of the run: a pure function of the seed, without memory of the past."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Int64, UInt64

WEIGHT_UNIT = 2**16
"""Weights are rounded to multiples of 1 / WEIGHT_UNIT, so that the order of sources repeats after so many rows."""

_FEISTEL_ROUNDS = 12
"""With 6, permutations of five things are visibly uneven."""


@dataclass(frozen=True)
class Rows:
    """Rows of the mixture, one entry each.

    Attributes:
        source: Index of the source.
        epoch: How often the source was gone through before.
        start: Index in the source's token stream of the row's first token.
    """

    source: Int64[np.ndarray, " N"]
    epoch: Int64[np.ndarray, " N"]
    start: Int64[np.ndarray, " N"]


@dataclass(frozen=True)
class Mixture:
    """An endless order of rows, each `sequence_length` tokens of one source.

    An epoch of a source cuts its stream, closed to a ring, into `num_tokens // sequence_length` rows from a random
    start, and takes them in a random order; the rest, less than a row, is left out, another one each time. Without
    weights all sources make one epoch together. With weights each has epochs of its own, and at every position k the
    number of rows taken from a source is within 1 of k times its weight (Tijdeman 1980, The chairman assignment
    problem).

    Attributes:
        num_tokens: Tokens in the stream of each source.
        sequence_length: Tokens in a row.
        weights: Share of the rows by source, in any unit; None takes every row of all sources once an epoch.
        seed: Another seed is another order.
    """

    num_tokens: tuple[int, ...]
    sequence_length: int
    weights: tuple[float, ...] | None
    seed: int

    def __post_init__(self) -> None:
        short = [n for n in self.num_tokens if n < self.sequence_length]
        if short:
            raise ValueError(
                f"A source of {short[0]} tokens is shorter than one row of sequence_length={self.sequence_length}. "
                "Use a smaller sequence_length or leave the source out."
            )
        if self.weights is not None:
            round_weights(self.weights)

    @cached_property
    def rows_per_epoch(self) -> tuple[int, ...]:
        """Rows in an epoch of each source."""
        return tuple(n // self.sequence_length for n in self.num_tokens)

    def rows(self, positions: Int64[np.ndarray, " N"]) -> Rows:
        """The rows at some positions of the run.

        Args:
            positions: Rows that come before, counted over all ranks.
        """
        if self.weights is None:
            total = sum(self.rows_per_epoch)
            epoch = positions // total
            shuffled = self._permute(positions % total, epoch, total, stream=len(self.num_tokens))
            ends = np.cumsum(self.rows_per_epoch)
            source = np.searchsorted(ends, shuffled, side="right")
            return Rows(source, epoch, self._starts(source, epoch, shuffled - (ends - self.rows_per_epoch)[source]))
        order, counts = tijdeman_order(self.weights)
        source = order[positions % WEIGHT_UNIT]
        units = np.array(round_weights(self.weights))
        taken = positions // WEIGHT_UNIT * units[source] + counts[positions % WEIGHT_UNIT]
        sizes = np.array(self.rows_per_epoch)[source]
        epoch, index = taken // sizes, taken % sizes
        shuffled = np.empty_like(index)
        for s in np.unique(source):
            own = source == s
            shuffled[own] = self._permute(index[own], epoch[own], self.rows_per_epoch[s], stream=int(s))
        return Rows(source, epoch, self._starts(source, epoch, shuffled))

    def _starts(self, source: np.ndarray, epoch: np.ndarray, row: np.ndarray) -> np.ndarray:
        sizes = np.array(self.num_tokens)[source]
        keys = _mix(_key(self.seed, 2 * source + 1, epoch))
        offset = (keys % sizes.astype(np.uint64)).astype(np.int64)
        starts: np.ndarray = (offset + row * self.sequence_length) % sizes
        return starts

    def _permute(self, index: np.ndarray, epoch: np.ndarray, size: int, stream: int) -> np.ndarray:
        return permute(index, _key(self.seed, np.full_like(epoch, 2 * stream), epoch), size)


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
        key = _mix(key)
        low = low ^ (_mix(high ^ key) & low_mask)
        key = _mix(key)
        high = high ^ (_mix(low ^ key) & high_mask)
    return (high << low_bits) | low


def _mix(x: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit words whose output bits depend on all input bits (Steele et al. 2014, SplitMix64)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def _key(seed: int, stream: np.ndarray, epoch: np.ndarray) -> np.ndarray:
    base = np.full(len(epoch), seed % 2**64, dtype=np.uint64)
    return _mix(_mix(_mix(base) ^ stream.astype(np.uint64)) ^ epoch.astype(np.uint64))


@lru_cache
def round_weights(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Weights as multiples of 1 / WEIGHT_UNIT that add up to it, by largest remainder.

    Args:
        weights: Positive numbers in any unit.
    """
    total = sum(weights)
    exact = [weight / total * WEIGHT_UNIT if weight > 0 else 0.0 for weight in weights]
    units = [int(x) for x in exact]
    by_remainder = sorted(range(len(units)), key=lambda i: (units[i] - exact[i], i))
    for i in by_remainder[: WEIGHT_UNIT - sum(units)]:
        units[i] += 1
    if min(units) == 0:
        smallest = weights[units.index(0)]
        raise ValueError(
            f"The weight {smallest} is less than 1/{WEIGHT_UNIT} of all weights together. Leave the source out of the "
            "corpus, or give it more."
        )
    return tuple(units)


@lru_cache
def tijdeman_order(weights: tuple[float, ...]) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
    """The source at each position of a period, and how many rows were taken from it before.

    Of the sources whose next row is not too early, the one whose next row is due first: Tijdeman's rule, which keeps
    every count within 1 - 1/(2m - 2) of its share for m sources. In integers, so that it is the same everywhere.

    Args:
        weights: As in `round_weights`.
    """
    units = round_weights(weights)
    order = np.zeros(WEIGHT_UNIT, dtype=np.int64)
    before = np.zeros(WEIGHT_UNIT, dtype=np.int64)
    slack = max(1, 2 * len(units) - 2)
    counts = [0] * len(units)
    for k in range(WEIGHT_UNIT):
        best, best_due = 0, 0
        found = False
        for i, unit in enumerate(units):
            ahead = slack * (unit * (k + 1) - counts[i] * WEIGHT_UNIT)
            if ahead < WEIGHT_UNIT:
                continue
            due = (slack - 1) * WEIGHT_UNIT - ahead
            if not found or due * units[best] < best_due * unit:
                best, best_due, found = i, due, True
        order[k], before[k] = best, counts[best]
        counts[best] += 1
    return order, before
