"""Losses of policy-gradient methods: values by hand, and where no gradient may flow."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmstack.losses.policy_gradient import clipped_value_loss, ppo_policy_loss, reinforce_loss

RATIOS = torch.tensor([0.5, 0.9, 1.0, 1.1, 1.5])


def surrogate(advantage: float, clip_range_high: float | None = None) -> tuple[list[float], list[float]]:
    """Losses at `RATIOS`, and their gradients with respect to the log-ratio."""
    log_ratio = RATIOS.log().requires_grad_()
    losses = ppo_policy_loss(
        log_ratio, torch.full_like(RATIOS, advantage), clip_range=0.2, clip_range_high=clip_range_high
    )
    losses.sum().backward()
    return losses.tolist(), log_ratio.grad.tolist()


def test_a_good_token_gains_nothing_above_the_range() -> None:
    losses, gradients = surrogate(2.0)
    assert losses == pytest.approx([-1.0, -1.8, -2.0, -2.2, -2.4])
    assert gradients == pytest.approx([-1.0, -1.8, -2.0, -2.2, 0.0])


def test_a_bad_token_gains_nothing_below_the_range() -> None:
    losses, gradients = surrogate(-2.0)
    assert losses == pytest.approx([1.6, 1.8, 2.0, 2.2, 3.0])
    assert gradients == pytest.approx([0.0, 1.8, 2.0, 2.2, 3.0])


def test_the_upper_range_can_be_wider() -> None:
    losses, gradients = surrogate(2.0, clip_range_high=0.45)
    assert losses == pytest.approx([-1.0, -1.8, -2.0, -2.2, -2.9])
    assert gradients[3:] == pytest.approx([-2.2, 0.0])
    assert surrogate(-2.0, clip_range_high=0.45) == surrogate(-2.0)
    assert surrogate(2.0, clip_range_high=0.2) == surrogate(2.0)


@given(st.floats(-1.0, 1.0), st.floats(-3.0, 3.0), st.floats(0.05, 0.5), st.one_of(st.none(), st.floats(0.05, 0.5)))
def test_the_loss_is_the_worse_of_both_surrogates(
    log_ratio: float, advantage: float, clip_range: float, high: float | None
) -> None:
    ratio = math.exp(log_ratio)
    clipped = min(max(ratio, 1 - clip_range), 1 + (clip_range if high is None else high))
    loss = ppo_policy_loss(
        torch.tensor([log_ratio], dtype=torch.float64),
        torch.tensor([advantage], dtype=torch.float64),
        clip_range=clip_range,
        clip_range_high=high,
    )
    assert loss.item() == pytest.approx(max(-ratio * advantage, -clipped * advantage), abs=1e-9)


def test_at_a_ratio_of_one_the_gradient_is_the_score_function_s() -> None:
    log_probs = torch.tensor([-0.3, -1.2, -4.0], requires_grad=True)
    advantages = torch.tensor([1.0, -0.5, 3.0])
    ppo_policy_loss(log_probs - log_probs.detach(), advantages, clip_range=0.2).sum().backward()
    surrogate_gradient, log_probs.grad = log_probs.grad, None
    losses = reinforce_loss(log_probs, advantages)
    assert losses.tolist() == pytest.approx([0.3, -0.6, 12.0])
    losses.sum().backward()
    assert log_probs.grad.tolist() == surrogate_gradient.tolist() == [-1.0, 0.5, -3.0]


def test_a_value_that_moved_too_far_counts_as_if_it_had_not_when_that_is_worse() -> None:
    values = torch.tensor([1.0, 1.0, 0.1, 1.0], requires_grad=True)
    old = torch.tensor([0.0, 0.0, 0.0, 2.0])
    returns = torch.tensor([1.0, 0.0, 1.0, 0.0])
    losses = clipped_value_loss(values, old, returns, clip_range=0.2)
    #           near = 0.2, -0.8**2  | 1 > 0.2  | unclipped | near = 1.8
    assert losses.tolist() == pytest.approx([0.32, 0.5, 0.405, 1.62])
    losses.sum().backward()
    assert values.grad.tolist() == pytest.approx([0.0, 1.0, -0.9, 0.0])


def test_without_a_range_it_is_half_the_squared_error() -> None:
    losses = clipped_value_loss(torch.tensor([1.0, 5.0]), torch.zeros(2), torch.tensor([1.0, 1.0]), clip_range=None)
    assert losses.tolist() == [0.0, 8.0]
