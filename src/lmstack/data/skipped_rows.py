"""Stretches of the order of rows that a run leaves out."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Int64


@dataclass(frozen=True)
class SkippedRows:
    """The order of rows without some stretches of it: what comes after a stretch moves up.

    A run counts the rows it takes; its first N rows are the first N of what is left. So steps, tokens, schedules and
    the length of a run are counted as if nothing had been left out.

    Attributes:
        windows: Stretches [start, stop) of places in the full order; sorted, apart from each other.
    """

    windows: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        """Check the order."""
        edges = [edge for window in self.windows for edge in window]
        if any(a >= b for a, b in pairwise(edges)) or any(edge < 0 for edge in edges[:1]):
            raise ValueError(f"skipped rows {self.windows}: windows must be sorted, apart, and not empty.")

    def places(self, positions: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
        """Where in the full order the rows at some positions of the run stand.

        Args:
            positions: Rows that the run takes before, over all ranks.
        """
        if not self.windows:
            return positions
        starts, stops = np.array(self.windows, dtype=np.int64).T
        skipped = np.concatenate([[0], np.cumsum(stops - starts)])
        where = np.searchsorted(starts - skipped[:-1], positions, side="right")
        places: np.ndarray = positions + skipped[where]
        return places

    def place(self, position: int) -> int:
        """Where in the full order the row at one position of the run stands.

        Args:
            position: Rows that the run takes before, over all ranks.
        """
        return int(self.places(np.array([position]))[0])

    def window(self, start: int, stop: int) -> tuple[int, int]:
        """The stretch of the full order in which the run takes its rows from one position to another.

        Args:
            start: Rows that the run takes before the first.
            stop: Rows that the run takes before the first one that is no longer meant.
        """
        return self.place(start), self.place(stop - 1) + 1

    def without(self, start: int, stop: int) -> "SkippedRows":
        """Leave out one stretch more.

        Args:
            start: Its first place in the full order.
            stop: The place after its last.
        """
        merged: list[tuple[int, int]] = []
        for first, last in sorted([*self.windows, (start, stop)]):
            if merged and first <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(last, merged[-1][1])
            else:
                merged.append((first, last))
        return SkippedRows(tuple(merged))
