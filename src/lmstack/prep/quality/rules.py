"""A rule measures a text and drops it beyond a threshold; a filter is a sequence of rules."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from lmstack.prep.document import Document, Dropped, Verdict
from lmstack.prep.stage import Context, Filter, StageSettings


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of a text and the range that is accepted.

    Attributes:
        reason: Why a text beyond the range is dropped.
        value: The figure.
        low: Smallest accepted.
        high: Largest accepted.
    """

    reason: str
    value: float | int
    low: float | int = float("-inf")
    high: float | int = float("inf")

    @property
    def is_accepted(self) -> bool:
        """Whether the figure is in the range."""
        return self.low <= self.value <= self.high

    def __str__(self) -> str:
        limit = f"less than {self.low:g}" if self.value < self.low else f"more than {self.high:g}"
        return f"{self.value:.4g}, {limit}"


@dataclass(frozen=True, kw_only=True)
class RuleStage(StageSettings):
    """A stage that is nothing but rules. Its fields are the thresholds."""

    @abstractmethod
    def measures(self, document: Document) -> Iterator[Measure]:
        """Every figure of a document, the cheap ones first.

        Args:
            document: Which.
        """

    def filter(self, context: Context) -> Filter:
        """The function that judges.

        Args:
            context: Of the partition.
        """
        return lambda document: judge(document, self.measures(document))


def judge(document: Document, measures: Iterator[Measure]) -> Verdict:
    """The document, or a drop for the first figure beyond its range; the figures after it are not computed.

    Args:
        document: Which.
        measures: Its figures, the cheap ones first.
    """
    for measure in measures:
        if not measure.is_accepted:
            return Dropped(document, measure.reason, str(measure))
    return document
