"""Each loss against its formula written out with numpy, and against what its paper says of it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmstack.losses.preference import (
    bradley_terry_loss,
    cdpo_loss,
    centering_penalty,
    dpo_loss,
    ipo_loss,
    kto_loss,
    orpo_loss,
    simpo_loss,
    tie_loss,
)

margins = st.floats(-20, 20)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@given(margins, margins, st.floats(0.01, 5.0))
def test_winning_losing_and_a_tie_are_all_there_is(first: float, second: float, threshold: float) -> None:
    """Rao and Kupper's three probabilities add up to 1."""
    losses = [
        bradley_terry_loss(tensor(first), tensor(second), threshold),
        bradley_terry_loss(tensor(second), tensor(first), threshold),
        tie_loss(tensor(first), tensor(second), threshold=threshold),
    ]
    assert sum(math.exp(-loss.item()) for loss in losses) == pytest.approx(1.0, abs=1e-9)


def test_a_tie_by_hand() -> None:
    """Equal scores, threshold 1: 1 - 2 sigmoid(-1)."""
    assert tie_loss(tensor(2.0), tensor(2.0), threshold=1.0).item() == pytest.approx(-math.log(1 - 2 * sigmoid(-1.0)))


@given(margins, margins, st.floats(0.01, 5.0))
def test_dpo_is_the_log_probability_of_the_preference(policy: float, reference: float, beta: float) -> None:
    loss = dpo_loss(tensor(policy), tensor(reference), beta=beta)
    assert loss.item() == pytest.approx(np.logaddexp(0, -beta * (policy - reference)), rel=1e-9, abs=1e-12)


def test_dpo_at_the_reference_is_ln_2_and_pulls_by_half_of_beta() -> None:
    policy = tensor(3.0).requires_grad_()
    loss = dpo_loss(policy, tensor(3.0), beta=0.4)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-15)
    assert policy.grad.item() == pytest.approx(-0.2, abs=1e-15)


@given(margins, margins)
def test_cdpo_without_smoothing_is_dpo(policy: float, reference: float) -> None:
    smooth = cdpo_loss(tensor(policy), tensor(reference), beta=0.3, label_smoothing=0.0)
    torch.testing.assert_close(smooth, dpo_loss(tensor(policy), tensor(reference), beta=0.3))


def test_cdpo_is_least_where_the_margin_gives_the_labels_their_probability() -> None:
    """The gradient vanishes at sigmoid(beta h) = 1 - epsilon."""
    policy = tensor(math.log(0.9 / 0.1) / 0.5).requires_grad_()
    cdpo_loss(policy, tensor(0.0), beta=0.5, label_smoothing=0.1).backward()
    assert policy.grad.item() == pytest.approx(0.0, abs=1e-12)


def test_ipo_by_hand() -> None:
    assert ipo_loss(tensor(5.0), tensor(2.0), beta=0.25).item() == pytest.approx((3.0 - 2.0) ** 2)
    assert ipo_loss(tensor(4.0), tensor(2.0), beta=0.25).item() == 0.0


def test_simpo_by_hand() -> None:
    loss = simpo_loss(tensor(0.7), beta=2.0, gamma=0.4)
    assert loss.item() == pytest.approx(-math.log(sigmoid(2.0 * 0.7 - 0.4)))


def test_orpo_by_hand() -> None:
    """Probabilities of 0.5 and 0.2 a token: odds of 1 and 0.25, an odds ratio of 4."""
    loss = orpo_loss(tensor(math.log(0.5)), tensor(math.log(0.2)), odds_coef=0.3)
    assert loss.item() == pytest.approx(math.log(2) - 0.3 * math.log(4 / 5))


def test_orpo_is_finite_at_a_probability_of_one() -> None:
    chosen = tensor(0.0).requires_grad_()
    loss = orpo_loss(chosen, tensor(-1.0), odds_coef=0.3)
    loss.backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(chosen.grad).all()


def test_kto_by_hand() -> None:
    loss = kto_loss(
        tensor(2.0, 2.0),
        torch.tensor([True, False]),
        reference_point=torch.tensor(0.5, dtype=torch.float64),
        beta=0.1,
        desirable_coef=1.5,
        undesirable_coef=0.7,
    )
    expected = [1.5 * (1 - sigmoid(0.1 * 1.5)), 0.7 * (1 - sigmoid(-0.1 * 1.5))]
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-12)


def test_kto_pushes_good_answers_up_and_bad_ones_down_and_leaves_the_reference_point() -> None:
    ratios = tensor(0.3, 0.3).requires_grad_()
    point = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    kto_loss(
        ratios,
        torch.tensor([True, False]),
        reference_point=point,
        beta=0.1,
        desirable_coef=1.0,
        undesirable_coef=1.0,
    ).sum().backward()
    assert ratios.grad[0] < 0 < ratios.grad[1]
    assert point.grad is None


@given(margins, margins, st.floats(0, 3))
def test_bradley_terry_with_a_margin(better: float, worse: float, margin: float) -> None:
    loss = bradley_terry_loss(tensor(better), tensor(worse), tensor(margin))
    assert loss.item() == pytest.approx(np.logaddexp(0, -(better - worse - margin)), rel=1e-9, abs=1e-12)


def test_a_constant_added_to_all_scores_changes_only_the_centering_penalty() -> None:
    better, worse = tensor(1.0, -2.0), tensor(0.5, 3.0)
    torch.testing.assert_close(bradley_terry_loss(better + 7, worse + 7), bradley_terry_loss(better, worse))
    np.testing.assert_allclose(centering_penalty(better, worse).numpy(), [2.25, 1.0])
    np.testing.assert_allclose(centering_penalty(better + 1, worse + 1).numpy(), [12.25, 9.0])


def test_losses_stay_finite_at_margins_that_overflow_a_sigmoid() -> None:
    for sign in (-1.0, 1.0):
        margin = torch.tensor([sign * 1e4], requires_grad=True)
        for loss in (
            dpo_loss(margin, torch.zeros(1), beta=1.0),
            cdpo_loss(margin, torch.zeros(1), beta=1.0, label_smoothing=0.1),
            simpo_loss(margin, beta=1.0, gamma=0.0),
            bradley_terry_loss(margin, torch.zeros(1)),
        ):
            (gradient,) = torch.autograd.grad(loss.sum(), margin)
            assert torch.isfinite(loss).all()
            assert torch.isfinite(gradient).all()
