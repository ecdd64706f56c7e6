"""The losses that a DPO run can have, as choices in its config: each with the numbers that it takes."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DPOLoss:
    """Direct preference optimisation (arXiv:2305.18290).

    Attributes:
        beta: Pull towards the reference; larger stays closer.
    """

    beta: float = 0.1
    kind: Literal["dpo"] = "dpo"

    def __post_init__(self) -> None:
        """Check the range."""
        _check_positive("loss.beta", self.beta)


@dataclass(frozen=True)
class CDPOLoss:
    """DPO for labels that are wrong with a known probability (https://ericmitchell.ai/cdpo.pdf).

    Attributes:
        label_smoothing: That probability, in [0, 0.5).
        beta: Pull towards the reference; larger stays closer.
    """

    label_smoothing: float
    beta: float = 0.1
    kind: Literal["cdpo"] = "cdpo"

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_positive("loss.beta", self.beta)
        if not 0.0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"loss.label_smoothing={self.label_smoothing}: must be in [0, 0.5), or labels say nothing."
            )


@dataclass(frozen=True)
class IPOLoss:
    """Identity preference optimisation (arXiv:2310.12036): the margin has a target, 1 / (2 beta).

    Attributes:
        beta: Pull towards the reference; larger stays closer.
    """

    beta: float = 0.1
    kind: Literal["ipo"] = "ipo"

    def __post_init__(self) -> None:
        """Check the range."""
        _check_positive("loss.beta", self.beta)


@dataclass(frozen=True)
class SimPOLoss:
    """Simple preference optimisation (arXiv:2405.14734): mean log-probabilities, no reference.

    Attributes:
        beta: Steepness.
        gamma: By how much beta times the margin should be positive.
    """

    beta: float = 2.0
    gamma: float = 1.0
    kind: Literal["simpo"] = "simpo"

    def __post_init__(self) -> None:
        """Check the range."""
        _check_positive("loss.beta", self.beta)


@dataclass(frozen=True)
class ORPOLoss:
    """Odds-ratio preference optimisation (arXiv:2403.07691): imitation and preference at once, no reference.

    Attributes:
        odds_coef: Weight of the odds ratio.
    """

    odds_coef: float = 0.1
    kind: Literal["orpo"] = "orpo"

    def __post_init__(self) -> None:
        """Check the range."""
        _check_positive("loss.odds_coef", self.odds_coef)


@dataclass(frozen=True)
class KTOLoss:
    """Kahneman–Tversky optimisation (arXiv:2402.01306): from answers called good or bad, each on its own.

    Attributes:
        beta: How soon the value of an answer saturates.
        desirable_coef: Weight of good answers.
        undesirable_coef: Weight of bad answers.
    """

    beta: float = 0.1
    desirable_coef: float = 1.0
    undesirable_coef: float = 1.0
    kind: Literal["kto"] = "kto"

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_positive("loss.beta", self.beta)
        _check_positive("loss.desirable_coef", self.desirable_coef)
        _check_positive("loss.undesirable_coef", self.undesirable_coef)


PairLoss = DPOLoss | CDPOLoss | IPOLoss | SimPOLoss | ORPOLoss
PreferenceLoss = DPOLoss | CDPOLoss | IPOLoss | SimPOLoss | ORPOLoss | KTOLoss


def needs_reference(loss: PreferenceLoss) -> bool:
    """Whether a loss compares the model with a frozen reference.

    Args:
        loss: The choice.
    """
    return not isinstance(loss, SimPOLoss | ORPOLoss)


def _check_positive(name: str, value: float) -> None:
    if not value > 0.0:
        raise ValueError(f"{name}={value}: must be above 0.")
