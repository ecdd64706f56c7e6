"""What the spike guard does about steps that it rejects."""

from dataclasses import dataclass
from typing import Literal

CALM_STEPS = 8
"""Accepted steps in a row after which earlier strikes are forgotten."""


@dataclass(frozen=True)
class SkipPolicy:
    """Leave out what is rejected, and go on.

    Attributes:
        max_strikes: Rejected steps, with fewer than `CALM_STEPS` accepted ones between them, at which the run stops:
            the level has changed for good, or the weights are broken.
    """

    max_strikes: int = 100
    kind: Literal["skip"] = "skip"

    def __post_init__(self) -> None:
        """Check the range."""
        _check_count("max_strikes", self.max_strikes)


@dataclass(frozen=True)
class RollbackPolicy:
    """Leave out what is rejected; when that does not help, go back to a checkpoint and around the data.

    Attributes:
        max_strikes: Rejected steps, with fewer than `CALM_STEPS` accepted ones between them, at which the run goes
            back.
        margin_steps: Steps before the first and after the last strike whose data is left out too; twice as many with
            each rollback in a row.
        max_rollbacks: Rollbacks in a row after which the run stops.
        lr_factor: What the learning rate is multiplied by at each rollback, for the rest of the run; 1 keeps it.
    """

    max_strikes: int = 3
    margin_steps: int = 8
    max_rollbacks: int = 3
    lr_factor: float = 1.0
    kind: Literal["rollback"] = "rollback"

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_count("max_strikes", self.max_strikes)
        _check_count("max_rollbacks", self.max_rollbacks)
        if self.margin_steps < 0:
            raise ValueError(f"policy.margin_steps={self.margin_steps}: must not be negative.")
        if not 0.0 < self.lr_factor <= 1.0:
            raise ValueError(f"policy.lr_factor={self.lr_factor}: must be above 0 and at most 1, which keeps the rate.")


@dataclass(frozen=True)
class StopPolicy:
    """Leave out what is rejected, and stop the run with an error.

    Attributes:
        max_strikes: Rejected steps, with fewer than `CALM_STEPS` accepted ones between them, at which the run stops.
    """

    max_strikes: int = 1
    kind: Literal["stop"] = "stop"

    def __post_init__(self) -> None:
        """Check the range."""
        _check_count("max_strikes", self.max_strikes)


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"policy.{name}={value}: must be at least 1.")
