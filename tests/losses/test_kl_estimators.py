"""What an estimator's value is, and what its gradient is, by enumeration of a small categorical (trap 39)."""

import pytest
import torch
from torch import Tensor

from lmstack.losses.kl_estimators import KLEstimator, estimate_kl
from lmstack.losses.policy_gradient import reinforce_loss


def logits(seed: int) -> Tensor:
    return torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


REFERENCE = logits(1).log_softmax(0)


def policy() -> tuple[Tensor, Tensor]:
    """A categorical's logits and log-probabilities."""
    parameters = logits(0).requires_grad_()
    return parameters, parameters.log_softmax(0)


def gradient(loss: Tensor, parameters: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, parameters)
    return found


def forward_kl() -> Tensor:
    """The gradient of KL(policy || reference)."""
    parameters, log_probs = policy()
    return gradient((log_probs.exp() * (log_probs - REFERENCE)).sum(), parameters)


def reverse_kl() -> Tensor:
    """The gradient of KL(reference || policy)."""
    parameters, log_probs = policy()
    return gradient((REFERENCE.exp() * (REFERENCE - log_probs)).sum(), parameters)


def as_loss(estimator: KLEstimator) -> Tensor:
    """The gradient, in expectation over tokens that the policy samples, of the estimator as a loss."""
    parameters, log_probs = policy()
    return gradient((log_probs.detach().exp() * estimate_kl(log_probs, REFERENCE, estimator)).sum(), parameters)


def test_values_by_hand() -> None:
    log_ratio = torch.tensor([0.0, 1.0, -2.0])
    values = {name: estimate_kl(log_ratio - 3.0, torch.full((3,), -3.0), name) for name in ("k1", "k2", "k3")}
    assert values["k1"].tolist() == [0.0, 1.0, -2.0]
    assert values["k2"].tolist() == [0.0, 0.5, 2.0]
    assert values["k3"].tolist() == pytest.approx([0.0, 0.36787944, 4.3890561])


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_exact_in_expectation_and_k2_is_not(estimator: KLEstimator) -> None:
    _, log_probs = policy()
    probs = log_probs.exp()
    exact = (probs * (log_probs - REFERENCE)).sum().item()
    assert exact > 0.1
    assert (probs * estimate_kl(log_probs, REFERENCE, estimator)).sum().item() == pytest.approx(exact, abs=1e-12)
    assert abs((probs * estimate_kl(log_probs, REFERENCE, "k2")).sum().item() - exact) > 1e-2
    assert (estimate_kl(log_probs, REFERENCE, "k3") >= 0).all()


def test_k1_as_a_loss_has_no_gradient() -> None:
    torch.testing.assert_close(as_loss("k1"), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)


def test_k1_in_the_reward_has_the_gradient_of_the_kl_divergence() -> None:
    parameters, log_probs = policy()
    penalty = -estimate_kl(log_probs, REFERENCE, "k1").detach()
    loss = (log_probs.detach().exp() * reinforce_loss(log_probs, penalty)).sum()
    torch.testing.assert_close(gradient(loss, parameters), forward_kl(), rtol=0, atol=1e-12)


def test_k2_as_a_loss_has_the_gradient_of_the_kl_divergence() -> None:
    torch.testing.assert_close(as_loss("k2"), forward_kl(), rtol=0, atol=1e-12)


def test_k3_as_a_loss_has_the_gradient_of_the_other_kl_divergence() -> None:
    torch.testing.assert_close(as_loss("k3"), reverse_kl(), rtol=0, atol=1e-12)
    assert (forward_kl() - reverse_kl()).abs().max() > 0.05
