"""Which row of which source comes at a position of the run: a pure function of the seed, without memory of the past."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
from jaxtyping import Int64

from lmstack.data.permutation import key_of, mix, permute
from lmstack.data.shares import SMALLEST_SHARE

WEIGHT_UNIT = round(1 / SMALLEST_SHARE)
"""Weights are rounded to multiples of 1 / WEIGHT_UNIT, so that the order of sources repeats after so many rows."""


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
class Phase:
    """Other shares from some row of the run on.

    Attributes:
        first_row: Rows before it, counted over all ranks.
        weights: Share of the rows by source, in any unit; 0 takes none.
    """

    first_row: int
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Mixture:
    """An endless order of rows, each `sequence_length` tokens of one source.

    An epoch of a source cuts its stream, closed to a ring, into `num_tokens // sequence_length` rows from a random
    start, and takes them in a random order; the rest, less than a row, is left out, another one each time. Without
    weights all sources make one epoch together. With weights each has epochs of its own, which go on where a phase
    with other weights begins, and at every position k of a phase the number of rows taken from a source is within 1 of
    k times its weight (Tijdeman 1980, The chairman assignment problem).

    Attributes:
        num_tokens: Tokens in the stream of each source.
        sequence_length: Tokens in a row.
        weights: Share of the rows by source, in any unit; 0 takes none. None takes every row of all sources once an
            epoch.
        seed: Another seed is another order.
        later: Phases with other weights, in order; the last one never ends.
    """

    num_tokens: tuple[int, ...]
    sequence_length: int
    weights: tuple[float, ...] | None
    seed: int
    later: tuple[Phase, ...] = ()

    def __post_init__(self) -> None:
        short = [n for n in self.num_tokens if n < self.sequence_length]
        if short:
            raise ValueError(
                f"A source of {short[0]} tokens is shorter than one row of sequence_length={self.sequence_length}. "
                "Use a smaller sequence_length or leave the source out."
            )
        starts = [0, *(phase.first_row for phase in self.later)]
        if any(a >= b for a, b in pairwise(starts)):
            raise ValueError(f"Phases begin at rows {starts}: each must begin after the one before it.")
        for phase in self.phases:
            round_weights(phase.weights)

    @cached_property
    def rows_per_epoch(self) -> tuple[int, ...]:
        """Rows in an epoch of each source."""
        return tuple(n // self.sequence_length for n in self.num_tokens)

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """Every stretch of the run with weights of its own; none without weights."""
        return () if self.weights is None else (Phase(0, self.weights), *self.later)

    def rows(self, positions: Int64[np.ndarray, " N"]) -> Rows:
        """The rows at some positions of the run.

        Args:
            positions: Rows that come before, counted over all ranks.
        """
        if not self.phases:
            total = sum(self.rows_per_epoch)
            epoch = positions // total
            shuffled = self._permute(positions % total, epoch, total, stream=len(self.num_tokens))
            ends = np.cumsum(self.rows_per_epoch)
            source = np.searchsorted(ends, shuffled, side="right")
            return Rows(source, epoch, self._starts(source, epoch, shuffled - (ends - self.rows_per_epoch)[source]))
        source, taken = self._draw(positions)
        sizes = np.array(self.rows_per_epoch)[source]
        epoch, index = taken // sizes, taken % sizes
        shuffled = np.empty_like(index)
        for s in np.unique(source):
            own = source == s
            shuffled[own] = self._permute(index[own], epoch[own], self.rows_per_epoch[s], stream=int(s))
        return Rows(source, epoch, self._starts(source, epoch, shuffled))

    def rows_taken(self, first: int, stop: int) -> Int64[np.ndarray, " S"]:
        """Rows that each source gives between two positions; with weights, of which there must be some.

        Args:
            first: Rows before the first.
            stop: Rows before the first one that no longer counts.
        """
        taken = np.zeros(len(self.num_tokens), dtype=np.int64)
        ends = [*(phase.first_row for phase in self.phases[1:]), max(stop, 1 + self.phases[-1].first_row)]
        for phase, end in zip(self.phases, ends, strict=True):
            begin, end = max(first, phase.first_row), min(stop, end)
            if begin < end:
                taken += rows_before(phase.weights, end - phase.first_row)
                taken -= rows_before(phase.weights, begin - phase.first_row)
        return taken

    def _draw(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source of each position, and how many rows of it the run takes before."""
        source, taken = np.empty_like(positions), np.empty_like(positions)
        phase_of = np.searchsorted([phase.first_row for phase in self.phases], positions, side="right") - 1
        for number in np.unique(phase_of):
            own, phase = phase_of == number, self.phases[number]
            order, counts = tijdeman_order(phase.weights)
            units = np.array(round_weights(phase.weights))
            period, place = np.divmod(positions[own] - phase.first_row, WEIGHT_UNIT)
            source[own] = order[place]
            taken[own] = self._taken_before_phase[number][order[place]] + period * units[order[place]] + counts[place]
        return source, taken

    @cached_property
    def _taken_before_phase(self) -> list[np.ndarray]:
        return [self.rows_taken(0, phase.first_row) for phase in self.phases]

    def _starts(self, source: np.ndarray, epoch: np.ndarray, row: np.ndarray) -> np.ndarray:
        sizes = np.array(self.num_tokens)[source]
        keys = mix(key_of(self.seed, 2 * source + 1, epoch))
        offset = (keys % sizes.astype(np.uint64)).astype(np.int64)
        starts: np.ndarray = (offset + row * self.sequence_length) % sizes
        return starts

    def _permute(self, index: np.ndarray, epoch: np.ndarray, size: int, stream: int) -> np.ndarray:
        return permute(index, key_of(self.seed, np.full_like(epoch, 2 * stream), epoch), size)


def rows_before(weights: tuple[float, ...], position: int) -> Int64[np.ndarray, " S"]:
    """Rows of each source among the first ones of a phase.

    Args:
        weights: As in `round_weights`.
        position: How many rows of the phase.
    """
    periods, rest = divmod(position, WEIGHT_UNIT)
    order, _ = tijdeman_order(weights)
    taken: np.ndarray = periods * np.array(round_weights(weights)) + np.bincount(order[:rest], minlength=len(weights))
    return taken


@lru_cache
def round_weights(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Weights as multiples of 1 / WEIGHT_UNIT that add up to it, by largest remainder.

    Args:
        weights: Numbers in any unit, not negative and not all 0; 0 stays 0.

    Raises:
        ValueError: A weight is negative, or all are 0, or one is lost in rounding.
    """
    total = sum(weights)
    if min(weights) < 0 or not 0 < total < float("inf"):
        raise ValueError(f"The weights {weights} must not be negative, infinite or all 0. Give shares in any unit.")
    exact = [weight / total * WEIGHT_UNIT for weight in weights]
    units = [int(x) for x in exact]
    by_remainder = sorted(range(len(units)), key=lambda i: (units[i] - exact[i], i))
    for i in by_remainder[: WEIGHT_UNIT - sum(units)]:
        units[i] += 1
    lost = [weight for weight, unit in zip(weights, units, strict=True) if weight > 0 and unit == 0]
    if lost:
        raise ValueError(
            f"The weight {lost[0]} is less than 1/{WEIGHT_UNIT} of all weights together. Give 0 to leave the source "
            "out, or give it more."
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
    slack = max(1, 2 * sum(unit > 0 for unit in units) - 2)
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
