"""How well scores predict preferences: accuracy, calibration, and what length alone would get right.

A pair's margin is the score of the better answer less that of the worse; σ(margin) is the probability that the scores
give to the preference that was stated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float, Int

NUM_BINS = 10
"""Bins of confidence, from 0.5 to 1."""

LENGTH_EDGES = (-100, -30, -10, 0, 10, 30, 100)
"""Bins of the better answer's length less the worse one's, in tokens; equal lengths are in a bin of their own."""

SCORE_EDGES = tuple(np.linspace(-10, 10, 41).tolist())
"""Bins of the score histogram; the first and the last are open."""


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs whose confidence, the larger of σ(margin) and σ(-margin), lies in a range.

    Attributes:
        lower: Of the range.
        upper: Of the range.
        num_pairs: How many there are.
        confidence: Their mean confidence; None when there are none.
        accuracy: The share that is ranked as stated; None when there are none.
    """

    lower: float
    upper: float
    num_pairs: int
    confidence: float | None
    accuracy: float | None


class PreferenceTally:
    """Sums over pairs and answers, which add up over batches and processes, and what follows from them.

    A pair whose scores are equal counts as half right, and so does one of equal lengths for "the longer wins".
    """

    def __init__(self) -> None:
        self._bins = np.zeros((NUM_BINS, 3))  # pairs, confidence, right
        self._lengths = np.zeros((len(LENGTH_EDGES) + 2, 2))  # pairs, right
        self._pairs = np.zeros(3)  # pairs, right, the longer is better
        self._scores = np.zeros(3)  # answers, sum, sum of squares
        self._histogram = np.zeros(len(SCORE_EDGES) + 1)

    def add_pairs(self, margins: Float[np.ndarray, " M"], length_differences: Int[np.ndarray, " M"]) -> None:
        """Add pairs.

        Args:
            margins: Score of the better answer less that of the worse.
            length_differences: Length of the better answer less that of the worse.
        """
        right = _half_for_ties(margins)
        confidence = 1 / (1 + np.exp(-np.abs(margins.astype(np.float64))))
        rows = np.minimum(((confidence - 0.5) * 2 * NUM_BINS).astype(int), NUM_BINS - 1)
        np.add.at(self._bins, rows, np.stack([np.ones_like(right), confidence, right], axis=1))
        np.add.at(self._lengths, _length_bin(length_differences), np.stack([np.ones_like(right), right], axis=1))
        self._pairs += [len(right), right.sum(), _half_for_ties(length_differences).sum()]

    def add_scores(self, scores: Float[np.ndarray, " N"]) -> None:
        """Add the scores of answers.

        Args:
            scores: One an answer.
        """
        values = scores.astype(np.float64)
        self._scores += [len(values), values.sum(), np.square(values).sum()]
        np.add.at(self._histogram, np.searchsorted(SCORE_EDGES, values, side="right"), 1)

    def to_vector(self) -> Float[np.ndarray, " X"]:
        """All sums in a row: the vectors of several tallies may be added."""
        return np.concatenate([part.ravel() for part in self._parts()])

    @classmethod
    def from_vector(cls, vector: Float[np.ndarray, " X"]) -> "PreferenceTally":
        """The inverse of `to_vector`.

        Args:
            vector: Perhaps of several tallies, added.
        """
        tally = cls()
        start = 0
        for part in tally._parts():
            part[...] = vector[start : start + part.size].reshape(part.shape)
            start += part.size
        return tally

    @property
    def num_pairs(self) -> int:
        """Pairs added."""
        return int(self._pairs[0])

    @property
    def accuracy(self) -> float:
        """The share of pairs ranked as stated; NaN when there are none."""
        return _share(self._pairs[1], self._pairs[0])

    @property
    def longer_wins_accuracy(self) -> float:
        """The share of pairs whose better answer is the longer: what a ruler gets right."""
        return _share(self._pairs[2], self._pairs[0])

    def accuracy_where(self, longer: bool) -> float:
        """Accuracy on the pairs whose better answer is the longer, or the shorter.

        Args:
            longer: Which.
        """
        middle = len(LENGTH_EDGES) // 2 + 1
        rows = self._lengths[middle + 1 :] if longer else self._lengths[:middle]
        return _share(rows[:, 1].sum(), rows[:, 0].sum())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: Σ over bins of pairs / all pairs x |accuracy - confidence|.

        Guo et al. 2017, arXiv:1706.04599, eq. 3, with `NUM_BINS` bins of equal width.
        """
        return _share(np.abs(self._bins[:, 2] - self._bins[:, 1]).sum(), self._pairs[0])

    @property
    def score_mean(self) -> float:
        """Mean score of the answers."""
        return _share(self._scores[1], self._scores[0])

    @property
    def score_std(self) -> float:
        """Standard deviation of the answers' scores."""
        variance = _share(self._scores[2], self._scores[0]) - self.score_mean**2
        return float(np.sqrt(np.maximum(variance, 0.0)))

    def reliability(self) -> list[ReliabilityBin]:
        """Accuracy and confidence, bin by bin."""
        edges = np.linspace(0.5, 1.0, NUM_BINS + 1).tolist()
        return [
            ReliabilityBin(
                lower=edges[i],
                upper=edges[i + 1],
                num_pairs=int(count),
                confidence=confidence / count if count else None,
                accuracy=right / count if count else None,
            )
            for i, (count, confidence, right) in enumerate(self._bins.tolist())
        ]

    def report(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        names = _length_names()
        return {
            "num_pairs": self.num_pairs,
            "accuracy": _or_none(self.accuracy),
            "longer_wins_accuracy": _or_none(self.longer_wins_accuracy),
            "expected_calibration_error": _or_none(self.calibration_error),
            "reliability": [vars(row) for row in self.reliability()],
            "by_length_difference": [
                {"tokens": name, "num_pairs": int(count), "accuracy": right / count if count else None}
                for name, (count, right) in zip(names, self._lengths.tolist(), strict=True)
            ],
            "scores": {
                "num_answers": int(self._scores[0]),
                "mean": _or_none(self.score_mean),
                "std": _or_none(self.score_std),
                "edges": list(SCORE_EDGES),
                "counts": self._histogram.astype(int).tolist(),
            },
        }

    def _parts(self) -> tuple[np.ndarray, ...]:
        return self._bins, self._lengths, self._pairs, self._scores, self._histogram


def annotator_agreement(votes: Sequence[Sequence[int]]) -> float:
    """The share of pairs of annotators who agree, over all pairs of answers that several judged.

    The most that a scorer can be expected to agree with one annotator.

    Args:
        votes: For each pair of answers, what each annotator preferred: 1 or -1 (0 for a tie agrees with 0 only).

    Returns:
        NaN when no pair of answers has two votes.
    """
    agreements = [a == b for row in votes for a, b in combinations(row, 2)]
    return _share(float(sum(agreements)), float(len(agreements)))


def _half_for_ties(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, 1.0, np.where(values == 0, 0.5, 0.0))


def _length_bin(differences: np.ndarray) -> np.ndarray:
    """Rows of the table: below and up to 0, equal, above 0."""
    edges = np.array(LENGTH_EDGES)
    middle = len(edges) // 2 + 1  # the row of equal lengths
    shorter = np.searchsorted(edges, differences, side="right")
    longer = np.searchsorted(edges, differences, side="left") + 1
    return np.where(differences == 0, middle, np.where(differences < 0, shorter, longer))


def _length_names() -> list[str]:
    edges = LENGTH_EDGES
    half = len(edges) // 2
    shorter = [f"< {edges[0]}", *(f"{edges[i]} to {edges[i + 1] - 1}" for i in range(half))]
    longer = [*(f"{edges[i] + 1} to {edges[i + 1]}" for i in range(half, len(edges) - 1)), f"> {edges[-1]}"]
    return [*shorter, "0", *longer]


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value
