"""Which optimizer steps are outliers, by loss and gradient norm, decided on the device."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_DEVIATIONS_PER_MEDIAN = 1.4826
"""Standard deviations of a normal distribution in the median of its absolute values (Rousseeuw and Croux 1993)."""

_LEVEL_STEPS = 8
"""Accepted steps whose median is what the next step is expected to be: few, for a loss that falls fast."""

_LEAST_RELATIVE_SPREAD = 0.02
"""Of the loss, as a share of its level: where the same batch comes again and again, noise is no measure."""

_LEAST_LOG_SPREAD = 0.25
"""Of the logarithm of the gradient norm."""

_LEAST_NORM = 1e-30


class Verdict(NamedTuple):
    """What is said of a step.

    Attributes:
        is_rejected: Whether its update must not be made.
        numbers: Loss, gradient norm, how many deviations each is above its level, and 1 where it is rejected.
    """

    is_rejected: Bool[Tensor, ""]
    numbers: Float[Tensor, " 5"]


class SpikeDetector:
    """Compares loss and gradient norm with what the last accepted steps lead to expect.

    The level is the median of the last 8 accepted steps; the noise is 1.4826 times the median, over a longer window,
    of how far a step was from the level before it: robust estimates of a mean and a standard deviation that outliers do
    not move, and that a falling loss does not widen. A step is rejected when loss or norm is not finite, or stands more
    than `threshold` of those deviations above its level; of the norm the logarithm is taken, for it varies by factors.
    Rejected steps are not remembered. Everything is tensors: nothing waits for the device.

    Args:
        threshold: Deviations above the level; above 0.
        window: Accepted steps that the noise is taken from, at least `min_history`.
        min_history: Accepted steps before which only what is not finite is rejected, at least 2.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(self, *, threshold: float, window: int, min_history: int) -> None:
        if not threshold > 0.0:
            raise ValueError(f"threshold={threshold}: must be above 0. 8 is far outside of a healthy run's noise.")
        if not 2 <= min_history <= window:
            raise ValueError(f"min_history={min_history}: must be from 2 to window={window}.")
        self.threshold = threshold
        self.window = window
        self.min_history = min_history
        # Loss, log of the norm, and how far each was from its level; the newest step last, NaN where there is none yet.
        self.history: Float[Tensor, "4 window"] = torch.full((4, window), torch.nan)
        self.num_accepted: Int[Tensor, ""] = torch.zeros((), dtype=torch.int64)
        self._least_log_spread = torch.tensor(_LEAST_LOG_SPREAD)

    def to(self, device: torch.device) -> None:
        """Move the memory.

        Args:
            device: Where loss and norm will be.
        """
        self.history, self.num_accepted = self.history.to(device), self.num_accepted.to(device)
        self._least_log_spread = self._least_log_spread.to(device)

    @torch.no_grad()
    def judge(self, loss: Float[Tensor, ""], grad_norm: Float[Tensor, ""]) -> Verdict:
        """Accept a step and remember it, or reject it.

        Args:
            loss: Of the whole step, all ranks.
            grad_norm: Of the whole model, before clipping.
        """
        seen = torch.stack([loss.float(), grad_norm.float()])
        values = torch.stack([seen[0], seen[1].clamp(min=_LEAST_NORM).log()])
        level = self.history[:2, -_LEVEL_STEPS:].nanmedian(dim=1).values
        noise = self.history[2:].nanmedian(dim=1).values * _DEVIATIONS_PER_MEDIAN
        least = torch.stack([level[0].abs() * _LEAST_RELATIVE_SPREAD, self._least_log_spread])
        scores = (values - level) / torch.maximum(noise, least)
        is_outlier = (scores > self.threshold).any() & (self.num_accepted >= self.min_history)
        is_rejected = is_outlier | ~seen.isfinite().all()
        newest = torch.cat([values, (values - level).abs()])[:, None]
        self.history = torch.where(is_rejected, self.history, torch.cat([self.history[:, 1:], newest], dim=1))
        self.num_accepted = self.num_accepted + ~is_rejected
        return Verdict(is_rejected, torch.cat([seen, scores, is_rejected.float()[None]]))

    def state_dict(self) -> dict[str, Any]:
        """What is remembered."""
        return {"history": self.history, "num_accepted": self.num_accepted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember what another one did, here where this one's memory is.

        Args:
            state: What `state_dict` gave.

        Raises:
            ValueError: It had another window.
        """
        if state["history"].shape != self.history.shape:
            raise ValueError(
                f"window={self.window}, but the checkpoint's spike guard remembered {state['history'].shape[1]} "
                "steps. Resume with that window."
            )
        self.history = state["history"].to(self.history.device)
        self.num_accepted = state["num_accepted"].to(self.num_accepted.device)
