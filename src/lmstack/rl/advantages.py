"""From rewards to advantages: generalised advantage estimation, group baselines, whitening."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

GroupBaseline = Literal["normalized", "centered", "leave_one_out"]
"""`normalized`: less the group's mean, over its standard deviation (GRPO, arXiv:2402.03300, section 4.1.2). `centered`:
less the mean (Dr. GRPO, arXiv:2503.20783). `leave_one_out`: less the mean of the others (RLOO, arXiv:2402.14740)."""

_STD_EPS = 1e-4
_VARIANCE_EPS = 1e-8


def generalized_advantages(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Generalised advantage estimation (Schulman et al. 2015, arXiv:1506.02438, eq. 16).

    An episode ends with its last response token: nothing is bootstrapped beyond it. What stands in masked slots, NaN
    included, has no influence.

    Args:
        rewards: Reward of the token at each slot.
        values: Value of what came before the token at each slot.
        response_mask: Slots that hold a token of the response; contiguous in every row.
        gamma: Discount.
        gae_lambda: 0 is the one-step error, 1 the whole return less the value.

    Returns:
        Advantages and returns (advantages + values), 0 in masked slots.
    """
    rewards, values = _masked(rewards, response_mask), _masked(values, response_mask)
    advantages = torch.zeros_like(rewards)
    following = rewards.new_zeros(rewards.shape[0])
    for t in reversed(range(rewards.shape[1])):
        next_value = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(following)
        error = rewards[:, t] + gamma * next_value - values[:, t]
        following = torch.where(response_mask[:, t], error + gamma * gae_lambda * following, 0.0)
        advantages[:, t] = following
    return advantages, torch.where(response_mask, advantages + values, 0.0)


def group_advantages(scores: Float[Tensor, "P G"], baseline: GroupBaseline) -> Float[Tensor, "P G"]:
    """How much better each response to a prompt is than its siblings.

    Args:
        scores: One score per response, G responses to each of P prompts.
        baseline: What a response is compared with.

    Raises:
        ValueError: A group has one response, which is no better than itself.
    """
    group_size = scores.shape[1]
    if group_size < 2:
        raise ValueError(f"A group of {group_size} response has no baseline. Use samples_per_prompt of at least 2.")
    centered = scores - scores.mean(dim=1, keepdim=True)
    if baseline == "centered":
        return centered
    if baseline == "leave_one_out":
        return centered * group_size / (group_size - 1)
    return centered / (scores.std(dim=1, keepdim=True) + _STD_EPS)


def whiten(
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda x: x,
) -> Float[Tensor, "B T"]:
    """Shift and scale to mean 0 and variance 1 over real tokens, all ranks together.

    Args:
        values: Any content in masked slots.
        mask: Slots that count.
        sum_over_ranks: All-reduces a tensor; nothing on one process.

    Returns:
        0 in masked slots.
    """
    kept = _masked(values, mask).double()
    total, count = sum_over_ranks(torch.stack([kept.sum(), mask.sum().double()]))
    mean = total / count.clamp(min=1)
    centered = torch.where(mask, kept - mean, 0.0)
    variance = sum_over_ranks(centered.square().sum()) / count.clamp(min=1)
    return (centered * torch.rsqrt(variance + _VARIANCE_EPS)).to(values.dtype)


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0)  # not multiplied: 0 * NaN is NaN
