"""From logits to a token: pure functions on rows that each carry their own parameters.

The order is penalty, temperature, top-k, top-p, min-p. Each of the three truncations renormalizes what the one before
it left. Ties are broken towards the lower id everywhere, so top-k keeps exactly k tokens and top-k 1 is greedy.
"""

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64
from torch import Tensor

NEGATIVE_INFINITY = float("-inf")


def penalize_repetition(
    logits: Float32[Tensor, "B V"], seen: Bool[Tensor, "B V"], penalty: Float[Tensor, " B"]
) -> Float32[Tensor, "B V"]:
    """Lower the logits of tokens that the text already holds.

    Keskar et al. 2019 (CTRL), arXiv:1909.05858, section 4.1: a seen token's logit is divided by the penalty. A negative
    logit is multiplied instead, as everyone does since, so that a penalty above 1 never raises a probability.

    Args:
        logits: Unnormalised scores.
        seen: True for tokens of the prompt and of what was generated.
        penalty: Above 1 discourages repetition, 1 changes nothing.
    """
    scale = penalty[:, None]
    return torch.where(seen, torch.where(logits > 0, logits / scale, logits * scale), logits)


def apply_temperature(logits: Float32[Tensor, "B V"], temperature: Float[Tensor, " B"]) -> Float32[Tensor, "B V"]:
    """Divide by the temperature; rows at temperature 0, which are greedy, are left as they are.

    Args:
        logits: Unnormalised scores.
        temperature: At least 0.
    """
    return logits / torch.where(temperature > 0, temperature, 1.0)[:, None]


def keep_top_k(logits: Float32[Tensor, "B V"], top_k: Int[Tensor, " B"]) -> Float32[Tensor, "B V"]:
    """Mask all but the `top_k` highest logits of a row (Fan et al. 2018, arXiv:1805.04833).

    Args:
        logits: Unnormalised scores.
        top_k: At least 1; V or more keeps everything.
    """
    limit = top_k.clamp(max=logits.size(1))
    highest = logits.topk(int(limit.max()), dim=1).values
    threshold = highest.gather(1, (limit - 1)[:, None])
    above, tied = logits > threshold, logits == threshold
    places_left = limit[:, None] - above.sum(1, keepdim=True)
    return logits.masked_fill(~(above | (tied & (tied.cumsum(1) <= places_left))), NEGATIVE_INFINITY)


def keep_top_p(logits: Float32[Tensor, "B V"], top_p: Float[Tensor, " B"]) -> Float32[Tensor, "B V"]:
    """Mask all but the fewest most probable tokens that together have probability `top_p` or more.

    Nucleus sampling, Holtzman et al. 2019, arXiv:1904.09751, eq. 2.

    Args:
        logits: Unnormalised scores.
        top_p: In (0, 1]; 1 keeps everything, however improbable.
    """
    order = logits.argsort(dim=1, descending=True, stable=True)
    probs = logits.gather(1, order).double().softmax(1)
    mass_before = probs.cumsum(1) - probs
    mass_before[:, 0] = 0.0  # exactly, so that the most probable token always stays
    keep = (mass_before < top_p[:, None]) | (top_p[:, None] >= 1)
    return logits.masked_fill(~torch.zeros_like(keep).scatter(1, order, keep), NEGATIVE_INFINITY)


def keep_min_p(logits: Float32[Tensor, "B V"], min_p: Float[Tensor, " B"]) -> Float32[Tensor, "B V"]:
    """Mask tokens less probable than `min_p` times the most probable one (Nguyen et al. 2024, arXiv:2407.01082).

    Args:
        logits: Unnormalised scores.
        min_p: In [0, 1]; 0 keeps everything.
    """
    below = logits - logits.amax(1, keepdim=True) < min_p.log()[:, None]
    return logits.masked_fill(below, NEGATIVE_INFINITY)


def sample_inverse_cdf(logits: Float32[Tensor, "B V"], uniform: Float64[Tensor, " B"]) -> Int64[Tensor, " B"]:
    """The first token, in order of id, whose cumulative probability exceeds `uniform`.

    A row's token is a function of its own logits and its own number: rows beside it, and the global generator, have no
    part in it. Cumulation in id order (not by rank) keeps the function continuous: logits that differ in the last bit
    give the same token for all but a sliver of numbers. A token of probability 0 is never drawn.

    Args:
        logits: Unnormalised scores, minus infinity where masked; at least one is finite.
        uniform: In [0, 1).
    """
    cumulative = logits.double().softmax(1).cumsum(1)
    total = cumulative[:, -1]
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    # clamped for logits that are not numbers: an index out of range would take a GPU's context down
    return torch.searchsorted(cumulative, target[:, None], right=True)[:, 0].clamp(max=logits.size(1) - 1)


def choose_tokens(
    logits: Float32[Tensor, "B V"], temperature: Float[Tensor, " B"], uniform: Float64[Tensor, " B"]
) -> Int64[Tensor, " B"]:
    """The most probable token of rows at temperature 0, a sampled one of the others.

    Args:
        logits: Unnormalised scores, already divided by the temperature and truncated.
        temperature: At least 0.
        uniform: In [0, 1); not used by greedy rows.
    """
    return torch.where(temperature > 0, sample_inverse_cdf(logits, uniform), logits.argmax(1))
