"""What is done to scores before they become rewards."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_VARIANCE_EPS = 1e-8


@dataclass(frozen=True)
class RewardShaping:
    """Changes to a response's score, in this order.

    Attributes:
        missing_eos_penalty: Taken off the score of a response that was cut, not ended.
        normalize: Less the mean, over the standard deviation, of all scores of the run so far.
        clip: Scores are kept within plus and minus this; None keeps them.
    """

    missing_eos_penalty: float = 0.0
    normalize: bool = False
    clip: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.missing_eos_penalty < 0.0:
            raise ValueError(
                f"reward_shaping.missing_eos_penalty={self.missing_eos_penalty}: is taken off, so it must not be "
                "negative."
            )
        if self.clip is not None and not self.clip > 0.0:
            raise ValueError(f"reward_shaping.clip={self.clip}: must be above 0, or null for none.")


class RewardShaper:
    """Applies a `RewardShaping`; its running statistics belong into the checkpoint.

    Args:
        config: What is done.
        sum_over_ranks: All-reduces a tensor.
    """

    def __init__(self, config: RewardShaping, sum_over_ranks: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        self.config = config
        self.sum_over_ranks = sum_over_ranks
        self._count, self._sum, self._square_sum = 0.0, 0.0, 0.0

    def __call__(self, scores: Float[Tensor, " B"], is_finished: Bool[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The scores that the policy learns from. With `normalize`, these scores are in the statistics already.

        Args:
            scores: Of a rollout's responses on this rank.
            is_finished: Whether a response ended of its own accord.
        """
        shaped = torch.where(is_finished, scores, scores - self.config.missing_eos_penalty)
        if self.config.normalize:
            shaped = self._normalized(shaped)
        return shaped if self.config.clip is None else shaped.clamp(-self.config.clip, self.config.clip)

    def state_dict(self) -> dict[str, float]:
        """The running sums."""
        return {"count": self._count, "sum": self._sum, "square_sum": self._square_sum}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on with the statistics of a checkpoint.

        Args:
            state: What `state_dict` gave.
        """
        self._count, self._sum, self._square_sum = state["count"], state["sum"], state["square_sum"]

    def _normalized(self, scores: Tensor) -> Tensor:
        own = scores.double()
        count = own.new_tensor(float(len(own)))
        sums = self.sum_over_ranks(torch.stack([count, own.sum(), own.square().sum()])).tolist()
        self._count, self._sum, self._square_sum = (
            self._count + sums[0],
            self._sum + sums[1],
            self._square_sum + sums[2],
        )
        mean = self._sum / self._count
        variance = max(self._square_sum / self._count - mean**2, 0.0)
        scale: float = (variance + _VARIANCE_EPS) ** 0.5
        return ((own - mean) / scale).to(scores.dtype)
