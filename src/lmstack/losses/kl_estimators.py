"""Estimators of KL(policy || reference) from one sampled token each (Schulman 2020, joschu.net/blog/kl-approx.html).

What an estimator is worth as a *value* and what its *gradient* is are different things. For a token sampled from the
policy, in expectation:

- k1, the log-ratio: exact, of high variance, may be negative. As a loss its gradient is zero; as a penalty in the
  reward, where the gradient comes from the score function, it is that of KL(policy || reference).
- k2, half the squared log-ratio: biased a little. As a loss its gradient is that of KL(policy || reference).
- k3, exp(-log-ratio) - 1 + log-ratio: exact, of low variance, never negative; for reports. As a loss its gradient is
  that of KL(reference || policy), another divergence; GRPO was published with it.

So k1 is the one that goes into the reward, and it is not offered as a loss.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]
KLLoss = Literal["k2", "k3"]


def estimate_kl(
    log_probs: Float[Tensor, "*B"], ref_log_probs: Float[Tensor, "*B"], estimator: KLEstimator
) -> Float[Tensor, "*B"]:
    """KL(policy || reference) from tokens sampled by the policy, in nats, one value per token.

    Args:
        log_probs: log p(token) under the policy.
        ref_log_probs: log p(token) under the reference.
        estimator: `k1` log-ratio; `k2` half its square; `k3` exp(-log-ratio) - 1 + log-ratio.
    """
    log_ratio = log_probs - ref_log_probs
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    return (-log_ratio).exp() - 1.0 + log_ratio
