"""Advantages: closed forms at both ends of lambda, a plain loop between them, and nothing from masked slots."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lmstack.rl.advantages import generalized_advantages, group_advantages, whiten

MASK = torch.tensor(
    [[0, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]
).bool()


def numbers(seed: int) -> Tensor:
    return torch.randn(MASK.shape, generator=torch.Generator().manual_seed(seed))


REWARDS, VALUES = numbers(0), numbers(1)


def spans() -> list[tuple[int, range]]:
    """The slots of each row's response."""
    found = [(row, MASK[row].nonzero()[:, 0].tolist()) for row in range(len(MASK))]
    return [(row, range(slots[0], slots[-1] + 1)) for row, slots in found if slots]


def test_by_hand() -> None:
    rewards, values = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[9.0, 0.5, 1.0]])
    mask = torch.tensor([[False, True, True]])
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=0.5, gae_lambda=0.8)
    # errors: 2 - 1 = 1 at the end, 1 + 0.5 * 1 - 0.5 = 1 before it, which also has 0.5 * 0.8 of what follows
    assert advantages.tolist() == [[0.0, pytest.approx(1.4), 1.0]]
    assert returns.tolist() == [[0.0, pytest.approx(1.9), 2.0]]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_lambda_one_is_the_reward_to_go_less_the_value(gamma: float) -> None:
    advantages, returns = generalized_advantages(REWARDS, VALUES, MASK, gamma=gamma, gae_lambda=1.0)
    for row, slots in spans():
        for t in slots:
            to_go = sum(gamma ** (s - t) * REWARDS[row, s].item() for s in slots if s >= t)
            assert returns[row, t].item() == pytest.approx(to_go, abs=1e-5)
            assert advantages[row, t].item() == pytest.approx(to_go - VALUES[row, t].item(), abs=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_lambda_zero_is_the_one_step_error(gamma: float) -> None:
    advantages, _ = generalized_advantages(REWARDS, VALUES, MASK, gamma=gamma, gae_lambda=0.0)
    for row, slots in spans():
        for t in slots:
            following = VALUES[row, t + 1].item() if t + 1 in slots else 0.0  # nothing follows the last token
            error = REWARDS[row, t].item() + gamma * following - VALUES[row, t].item()
            assert advantages[row, t].item() == pytest.approx(error, abs=1e-6)


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=6),
    st.integers(0, 3),
    st.integers(0, 3),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_it_is_the_sum_that_the_paper_defines(
    tokens: list[tuple[float, float]], before: int, after: int, gamma: float, gae_lambda: float
) -> None:
    """Eq. 16: the (gamma lambda)-discounted sum of errors, each token's sum made anew."""
    rewards, values = [r for r, _ in tokens], [v for _, v in tokens] + [0.0]
    errors = [rewards[t] + gamma * values[t + 1] - values[t] for t in range(len(tokens))]
    expected = [
        sum((gamma * gae_lambda) ** (s - t) * errors[s] for s in range(t, len(tokens))) for t in range(len(tokens))
    ]
    padded = torch.full((2, 1, before + len(tokens) + after), 3.0, dtype=torch.float64)
    inside = slice(before, before + len(tokens))
    padded[:, 0, inside] = torch.tensor([rewards, values[:-1]], dtype=torch.float64)
    mask = torch.zeros(padded.shape[1:], dtype=torch.bool)
    mask[0, inside] = True
    advantages, returns = generalized_advantages(padded[0], padded[1], mask, gamma=gamma, gae_lambda=gae_lambda)
    assert advantages[0, inside].tolist() == pytest.approx(expected, abs=1e-9)
    assert returns[0, inside].tolist() == pytest.approx([a + v for a, v in zip(expected, values)], abs=1e-9)
    assert not advantages[~mask].any()
    assert not returns[~mask].any()


@pytest.mark.parametrize("poison", [1e6, float("nan"), float("inf")])
def test_what_stands_in_masked_slots_has_no_influence(poison: float) -> None:
    expected = generalized_advantages(REWARDS, VALUES, MASK, gamma=0.9, gae_lambda=0.7)
    poisoned = (torch.where(MASK, x, poison) for x in (REWARDS, VALUES))
    for clean, dirty in zip(expected, generalized_advantages(*poisoned, MASK, gamma=0.9, gae_lambda=0.7), strict=True):
        assert torch.equal(clean, dirty)
    assert torch.equal(whiten(REWARDS, MASK), whiten(torch.where(MASK, REWARDS, poison), MASK))


def test_whitened_tokens_have_mean_0_and_variance_1() -> None:
    white = whiten(3.0 * REWARDS + 7.0, MASK)
    assert white[MASK].mean().item() == pytest.approx(0.0, abs=1e-6)
    assert white[MASK].double().var(unbiased=False).item() == pytest.approx(1.0, abs=1e-6)
    assert not white[~MASK].any()


def test_padding_does_not_change_whitening() -> None:
    wide = torch.nn.functional.pad(REWARDS, (0, 7), value=5.0)
    wide_mask = torch.nn.functional.pad(MASK, (0, 7))
    assert torch.equal(whiten(wide, wide_mask)[:, : MASK.shape[1]], whiten(REWARDS, MASK))


def sums_of_both(parts: list[tuple[Tensor, Tensor]]) -> Callable[[Tensor], Tensor]:
    """An all-reduce by arithmetic: what both ranks would contribute to the first call, then to the second."""
    kept = [torch.where(mask, values, 0.0).double() for values, mask in parts]
    count = sum(mask.sum() for _, mask in parts)
    total = torch.stack([torch.stack([k.sum() for k in kept]).sum(), count.double()])
    mean = total[0] / total[1]
    squares = sum(torch.where(mask, k - mean, 0.0).square().sum() for k, (_, mask) in zip(kept, parts))
    answers = iter([total, squares])
    return lambda _: next(answers)


def test_two_ranks_whiten_as_one() -> None:
    halves = [(REWARDS[:1], MASK[:1]), (REWARDS[1:], MASK[1:])]
    together = torch.cat([whiten(*half, sums_of_both(halves)) for half in halves])
    torch.testing.assert_close(together, whiten(REWARDS, MASK), rtol=0, atol=1e-6)
    apart = torch.cat([whiten(*half) for half in halves])
    assert (apart - together).abs().max() > 0.1


def test_equal_values_and_no_tokens_whiten_to_zero() -> None:
    assert not whiten(torch.full(MASK.shape, 4.0), MASK).any()
    assert not whiten(REWARDS, torch.zeros_like(MASK)).any()


SCORES = torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]])


def test_group_baselines_by_hand() -> None:
    assert group_advantages(SCORES, "centered").tolist() == [[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]]
    # each score less the mean of the two others: 1 - 4, 2 - 3.5, 6 - 1.5
    assert group_advantages(SCORES, "leave_one_out").tolist() == [[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]
    normalized = group_advantages(SCORES, "normalized")
    assert normalized[0].tolist() == pytest.approx([-2 / 7**0.5, -1 / 7**0.5, 3 / 7**0.5], rel=1e-4)
    assert normalized[1].tolist() == [0.0, 0.0, 0.0]


def test_the_order_within_a_group_does_not_matter() -> None:
    order = torch.tensor([2, 0, 1])
    for baseline in ("centered", "leave_one_out", "normalized"):
        shuffled = group_advantages(SCORES[:, order], baseline)
        torch.testing.assert_close(shuffled, group_advantages(SCORES, baseline)[:, order], rtol=0, atol=1e-6)


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="A group of 1 response has no baseline"):
        group_advantages(SCORES[:, :1], "centered")
