"""Losses of policy-gradient methods, one value per token; what is averaged over what is the caller's choice."""

import torch
from jaxtyping import Float
from torch import Tensor


def ppo_policy_loss(
    log_ratio: Float[Tensor, "*B"],
    advantages: Float[Tensor, "*B"],
    *,
    clip_range: float,
    clip_range_high: float | None = None,
) -> Float[Tensor, "*B"]:
    """Clipped surrogate of proximal policy optimisation, to be minimised.

    Schulman et al. 2017, arXiv:1707.06347, eq. 7. A wider upper range is DAPO's "clip-higher" (Yu et al. 2025,
    arXiv:2503.14476, eq. 10).

    Args:
        log_ratio: log p(token) under the policy being trained, less that at sampling time, in nats.
        advantages: How much better the token was than expected; a constant here, no gradient flows.
        clip_range: The ratio gains nothing beyond 1 - clip_range and, by default, 1 + clip_range.
        clip_range_high: Upper range where it differs; None means the same.
    """
    ratio = log_ratio.exp()
    high = clip_range if clip_range_high is None else clip_range_high
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def reinforce_loss(log_probs: Float[Tensor, "*B"], advantages: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Score-function estimator, whose gradient is that of the expected reward for samples of the policy itself.

    Williams 1992, "Simple statistical gradient-following algorithms", eq. 4.

    Args:
        log_probs: log p(token) under the policy being trained, in nats.
        advantages: Reward less a baseline that does not depend on the token; a constant here.
    """
    return -log_probs * advantages


def clipped_value_loss(
    values: Float[Tensor, "*B"],
    old_values: Float[Tensor, "*B"],
    returns: Float[Tensor, "*B"],
    *,
    clip_range: float | None,
) -> Float[Tensor, "*B"]:
    """Half the squared error of the value, the larger of the value itself and one kept near what it was.

    Schulman et al. 2016 as used by PPO's reference code; Engstrom et al. 2020, arXiv:2005.12729, eq. 2.

    Args:
        values: Predicted by the critic being trained.
        old_values: Predicted at sampling time.
        returns: What should have been predicted.
        clip_range: Farthest that a value may move from `old_values`; None clips nothing.
    """
    error = (values - returns).square()
    if clip_range is not None:
        near = old_values + (values - old_values).clamp(-clip_range, clip_range)
        error = torch.maximum(error, (near - returns).square())
    return 0.5 * error
