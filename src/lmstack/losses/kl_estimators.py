"""Estimators of KL(policy || reference) from one sampled token each (Schulman 2020, joschu.net/blog/kl-approx.html).

What an estimator is worth as a *value* and what its *gradient* is are different things. For a token sampled from the
policy, in expectation:

| estimator | value | gradient when used as a loss | use |
|---|---|---|---|
| k1 | exact, high variance, may be negative | zero | as a reward penalty, where its gradient comes from the score function |
| k2 | biased a little | that of KL(policy || reference) | as a loss |
| k3 | exact, low variance, never negative | that of KL(reference || policy) | for reports; GRPO as published uses it as a loss |

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
