"""How strongly the policy is held to its reference."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FixedKL:
    """One coefficient for the whole run.

    Attributes:
        coef: Penalty per nat of KL(policy || reference), at least 0.
    """

    coef: float
    kind: Literal["fixed"] = "fixed"

    def __post_init__(self) -> None:
        """Check the range."""
        _check_coef(self.coef)


@dataclass(frozen=True)
class AdaptiveKL:
    """A coefficient that follows a target (Ziegler et al. 2019, arXiv:1909.08593, section 2.2).

    After each rollout it is multiplied by 1 + error * episodes / horizon, where the error is KL / target - 1 within
    ±0.2.

    Attributes:
        coef: At the start, above 0.
        target: KL(policy || reference) of a response, in nats, that is aimed at.
        horizon: Episodes over which an error of 1 would double the coefficient.
    """

    coef: float
    target: float
    horizon: int = 10_000
    kind: Literal["adaptive"] = "adaptive"

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_coef(self.coef)
        for name in ("coef", "target", "horizon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"kl.{name}={getattr(self, name)}: an adaptive coefficient needs it above 0.")


class KLController:
    """The coefficient in force; its state belongs into the checkpoint.

    Args:
        config: How it changes.
    """

    def __init__(self, config: FixedKL | AdaptiveKL) -> None:
        self.config = config
        self.coef = config.coef

    def update(self, kl: float, num_episodes: int) -> None:
        """Take note of a rollout.

        Args:
            kl: Mean over responses of the sum over tokens, in nats.
            num_episodes: Responses in the rollout, all ranks.
        """
        if isinstance(self.config, AdaptiveKL):
            error = min(max(kl / self.config.target - 1.0, -0.2), 0.2)
            self.coef *= 1.0 + error * num_episodes / self.config.horizon

    def state_dict(self) -> dict[str, float]:
        """The coefficient."""
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on with the coefficient of a checkpoint.

        Args:
            state: What `state_dict` gave.
        """
        self.coef = float(state["coef"])


def _check_coef(coef: float) -> None:
    if coef < 0.0:
        raise ValueError(f"kl.coef={coef}: must not be negative. 0 lets the policy go where the reward leads.")
