"""Losses on preferences: one value a pair, or an answer; nothing is averaged here.

`chosen` and `rejected` log-probabilities are of whole answers given their prompt, in nats: summed over the answer's
tokens, or averaged where the docstring says mean. A margin is chosen minus rejected.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

LARGEST_MEAN_LOG_PROB = -1e-6
"""Odds are infinite at probability 1; `orpo_loss` takes a mean log-probability above this one as this one."""


def bradley_terry_loss(
    better_scores: Float[Tensor, " M"], worse_scores: Float[Tensor, " M"], margin: Float[Tensor, " M"] | float = 0.0
) -> Float[Tensor, " M"]:
    """-log σ(r_better - r_worse - margin): minus the log-probability that the better answer wins.

    Ouyang et al. 2022, arXiv:2203.02155, eq. 1; the margin is that of Llama 2, arXiv:2307.09288, eq. 2. A ranking of K
    answers is its C(K, 2) pairs, each weighted by 1 / C(K, 2).

    Args:
        better_scores: Scores of the preferred answers.
        worse_scores: Scores of the others.
        margin: By how much the better score should be larger; 0 where nothing is known.
    """
    return -F.logsigmoid(better_scores - worse_scores - margin)


def tie_loss(
    first_scores: Float[Tensor, " M"], second_scores: Float[Tensor, " M"], *, threshold: float
) -> Float[Tensor, " M"]:
    """Minus the log-probability that two answers are called equally good.

    Rao & Kupper 1967, "Ties in paired-comparison experiments", eq. 4: one answer wins with
    probability σ(difference - threshold), which is `bradley_terry_loss` with the threshold as margin, and neither with
    what is left, σ(threshold - difference) σ(threshold + difference) (1 - exp(-2 threshold)).

    Args:
        first_scores: Scores of one answer.
        second_scores: Scores of the other.
        threshold: Half of the width of the scores' difference that passes for a tie, above 0.
    """
    difference = first_scores - second_scores
    either = F.logsigmoid(threshold - difference) + F.logsigmoid(threshold + difference)
    return -either - math.log(-math.expm1(-2.0 * threshold))


def centering_penalty(better_scores: Float[Tensor, " M"], worse_scores: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
    """(r_better + r_worse)²: pulls scores, of which only differences matter to the loss, towards a mean of 0.

    Eisenstein et al. 2023, arXiv:2312.09244, section 2.

    Args:
        better_scores: Scores of the preferred answers.
        worse_scores: Scores of the others.
    """
    return (better_scores + worse_scores).square()


def dpo_loss(
    policy_margin: Float[Tensor, " M"], reference_margin: Float[Tensor, " M"], *, beta: float
) -> Float[Tensor, " M"]:
    """Direct preference optimisation: -log σ(β (policy margin - reference margin)).

    Rafailov et al. 2023, arXiv:2305.18290, eq. 7.

    Args:
        policy_margin: Of summed log-probabilities under the model trained.
        reference_margin: The same under the frozen reference.
        beta: Pull towards the reference; larger stays closer.
    """
    return -F.logsigmoid(beta * (policy_margin - reference_margin))


def cdpo_loss(
    policy_margin: Float[Tensor, " M"], reference_margin: Float[Tensor, " M"], *, beta: float, label_smoothing: float
) -> Float[Tensor, " M"]:
    """Conservative DPO: cross-entropy with labels that are wrong with a known probability.

    -(1 - ε) log σ(β h) - ε log σ(-β h), h = policy margin - reference margin (Mitchell 2023,
    https://ericmitchell.ai/cdpo.pdf, eq. 3).

    Args:
        policy_margin: Of summed log-probabilities under the model trained.
        reference_margin: The same under the frozen reference.
        beta: Pull towards the reference; larger stays closer.
        label_smoothing: Probability ε that a label is wrong, in [0, 0.5).
    """
    logits = beta * (policy_margin - reference_margin)
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def ipo_loss(
    policy_margin: Float[Tensor, " M"], reference_margin: Float[Tensor, " M"], *, beta: float
) -> Float[Tensor, " M"]:
    """Identity preference optimisation: (policy margin - reference margin - 1 / (2 β))².

    Azar et al. 2023, arXiv:2310.12036, eq. 17, where β is called τ. Unlike DPO's, the margin has a target: labels that
    are always right do not drive it to infinity.

    Args:
        policy_margin: Of summed log-probabilities under the model trained.
        reference_margin: The same under the frozen reference.
        beta: Pull towards the reference; larger stays closer.
    """
    return (policy_margin - reference_margin - 1 / (2 * beta)).square()


def simpo_loss(mean_margin: Float[Tensor, " M"], *, beta: float, gamma: float) -> Float[Tensor, " M"]:
    """Simple preference optimisation, without a reference: -log σ(β mean margin - γ).

    Meng et al. 2024, arXiv:2405.14734, eq. 6.

    Args:
        mean_margin: Of mean log-probabilities a token under the model trained.
        beta: Steepness.
        gamma: By how much β times the margin should be positive.
    """
    return -F.logsigmoid(beta * mean_margin - gamma)


def orpo_loss(
    chosen_mean: Float[Tensor, " M"], rejected_mean: Float[Tensor, " M"], *, odds_coef: float
) -> Float[Tensor, " M"]:
    """Odds-ratio preference optimisation, without a reference: negative log-likelihood and a log odds ratio.

    -log p(chosen) - λ log σ(log odds(chosen) - log odds(rejected)), p the geometric mean a token and odds = p / (1 - p)
    (Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7).

    Args:
        chosen_mean: Mean log-probability a token of the preferred answers, at most 0.
        rejected_mean: The same of the others.
        odds_coef: Weight λ of the odds ratio.
    """
    return -chosen_mean - odds_coef * F.logsigmoid(_log_odds(chosen_mean) - _log_odds(rejected_mean))


def kto_loss(
    log_ratios: Float[Tensor, " N"],
    is_desirable: Bool[Tensor, " N"],
    *,
    reference_point: Float[Tensor, ""],
    beta: float,
    desirable_coef: float,
    undesirable_coef: float,
) -> Float[Tensor, " N"]:
    """Kahneman–Tversky optimisation, from single answers called good or bad: λ_y - v.

    v = λ_D σ(β (r - z)) for a good answer and λ_U σ(β (z - r)) for a bad one (Ethayarajh et al. 2024,
    arXiv:2402.01306, eq. 8).

    Args:
        log_ratios: r, log π(answer) - log π_ref(answer), summed over tokens.
        is_desirable: Whether an answer was called good.
        reference_point: z, an estimate of KL(π ‖ π_ref) that is not below 0; no gradient goes through it.
        beta: How soon the value of a ratio saturates.
        desirable_coef: Weight λ_D of good answers.
        undesirable_coef: Weight λ_U of bad answers.
    """
    gain = beta * (log_ratios - reference_point.detach())
    return torch.where(is_desirable, desirable_coef * (1 - gain.sigmoid()), undesirable_coef * (1 - (-gain).sigmoid()))


def _log_odds(mean_log_prob: Tensor) -> Tensor:
    log_prob = mean_log_prob.clamp(max=LARGEST_MEAN_LOG_PROB)
    return log_prob - torch.log(-torch.expm1(log_prob))
