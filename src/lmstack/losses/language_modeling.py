"""Next-token losses from hidden states: cross-entropy with z-loss, and log-probabilities of given tokens."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmstack.losses.output_head import ChunkedHead, HeadGradients, HeadOptions, compute_dtype
from lmstack.losses.reduction import count_supervised, is_supervised


class LossSums(NamedTuple):
    """Sums over the tokens that count. Add the two losses before dividing: the backward pass is then cheapest.

    Attributes:
        cross_entropy: Σ -log p(label), in nats.
        z_loss: Σ z_loss_coef * logsumexp(logits)².
        num_tokens: How many tokens count.
    """

    cross_entropy: Float[Tensor, ""]
    z_loss: Float[Tensor, ""]
    num_tokens: Int[Tensor, ""]


def chunked_cross_entropy_sum(
    hidden: Float[Tensor, "*B D"],
    head_weight: Float[Tensor, "V D"],
    labels: Int[Tensor, "*B"],
    *,
    chunk_size: int,
    head_bias: Float[Tensor, " V"] | None = None,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    z_loss_coef: float = 0.0,
) -> LossSums:
    """Cross-entropy and z-loss, summed over tokens, `chunk_size` tokens at a time.

    Both are computed in float32 whatever the dtype of `hidden`. Gradients are computed with the loss, while a chunk's
    logits are at hand, and scaled in the backward pass. The z-loss is that of PaLM (arXiv:2204.02311, section 5).

    Args:
        hidden: Hidden states after the final norm.
        head_weight: Output matrix.
        labels: The token that each hidden state should predict, `IGNORE_INDEX` where it does not count.
        chunk_size: Most tokens whose logits exist at once.
        head_bias: Added to the scaled logits; None for none.
        logit_scale: Factor on `head_weight @ hidden`.
        logit_softcap: Logits become `softcap * tanh(logits / softcap)`; None leaves them.
        z_loss_coef: Coefficient of logsumexp².

    Returns:
        The sums; all zero, with zero gradients, when no token counts.

    Raises:
        ValueError: `chunk_size` is below 1.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    options = _head_options(flat, chunk_size, logit_scale, logit_softcap, 1.0)
    flat_labels = labels.reshape(-1)
    cross_entropy, z_loss = _CrossEntropySum.apply(
        flat, head_weight, head_bias, flat_labels, options, z_loss_coef, torch.is_grad_enabled()
    )
    return LossSums(cross_entropy, z_loss, count_supervised(flat_labels))


def token_log_probs(
    hidden: Float[Tensor, "*B D"],
    head_weight: Float[Tensor, "V D"],
    labels: Int[Tensor, "*B"],
    *,
    chunk_size: int,
    head_bias: Float[Tensor, " V"] | None = None,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    temperature: float = 1.0,
) -> Float[Tensor, "*B"]:
    """Log-probability of each label, differentiable; logits are computed again, chunk by chunk, in the backward pass.

    Args:
        hidden: Hidden states after the final norm.
        head_weight: Output matrix.
        labels: The token that occurred after each hidden state, `IGNORE_INDEX` where none counts.
        chunk_size: Most tokens whose logits exist at once.
        head_bias: Added to the scaled logits; None for none.
        logit_scale: Factor on `head_weight @ hidden`.
        logit_softcap: Logits become `softcap * tanh(logits / softcap)`; None leaves them.
        temperature: Divisor of the finished logits.

    Returns:
        In nats, float32; 0 where the label is `IGNORE_INDEX`.

    Raises:
        ValueError: `chunk_size` is below 1, or `temperature` is not positive.
    """
    if not temperature > 0.0:
        raise ValueError(f"temperature={temperature}: must be above 0. The limit of 0 has no log-probabilities.")
    flat = hidden.reshape(-1, hidden.shape[-1])
    options = _head_options(flat, chunk_size, logit_scale, logit_softcap, temperature)
    out: Tensor = _TokenLogProbs.apply(flat, head_weight, head_bias, labels.reshape(-1), options)
    return out.reshape(labels.shape)


def _head_options(
    hidden: Tensor, chunk_size: int, logit_scale: float, logit_softcap: float | None, temperature: float
) -> HeadOptions:
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: must be at least 1 token. 4096 suits most models.")
    return HeadOptions(chunk_size, logit_scale, logit_softcap, temperature, compute_dtype(hidden))


def _cross_entropy_gradients(
    head: ChunkedHead, needs: tuple[bool, bool, bool], ce_scale: Tensor, z_scale: Tensor, z_loss_coef: float
) -> HeadGradients:
    gradients = HeadGradients(head, needs)
    for chunk in head.chunks():
        softmax_coef = ce_scale + z_scale * 2.0 * z_loss_coef * chunk.logsumexp
        chunk.backward(gradients, softmax_coef, ce_scale.expand_as(softmax_coef))
    return gradients


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        options: HeadOptions,
        z_loss_coef: float,
        is_grad_enabled: bool,
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            head = ChunkedHead(hidden, weight, bias, labels, is_supervised(labels), options)
            ctx.needs = tuple(is_grad_enabled and needed for needed in ctx.needs_input_grad[:3])
            gradients = HeadGradients(head, ctx.needs)
            cross_entropy = hidden.new_zeros((), dtype=head.loss_dtype)
            z_loss = torch.zeros_like(cross_entropy)
            for chunk in head.chunks():
                cross_entropy -= chunk.token_log_probs.masked_fill(~chunk.counts, 0.0).sum()
                softmax_coef = None
                if z_loss_coef:
                    logsumexp = chunk.logsumexp.masked_fill(~chunk.counts, 0.0)
                    z_loss += z_loss_coef * logsumexp.square().sum()
                    softmax_coef = 1.0 + 2.0 * z_loss_coef * logsumexp
                if any(ctx.needs):
                    ones = None if softmax_coef is None else torch.ones_like(softmax_coef)
                    chunk.backward(gradients, softmax_coef, ones)
        ctx.save_for_backward(hidden, weight, bias, labels)
        ctx.gradients, ctx.options, ctx.z_loss_coef = gradients, options, z_loss_coef
        ctx.set_materialize_grads(False)
        return cross_entropy, z_loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ce_scale: Tensor | None, z_scale: Tensor | None) -> tuple[Tensor | None, ...]:
        """Scale the gradients of the forward pass, or compute them again where they are used up or do not fit."""
        hidden, weight, bias, labels = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            gradients, ctx.gradients = ctx.gradients, None
            # `cross_entropy + z_loss` hands the very same tensor to both, which tells without waiting for the device.
            fits = gradients is not None and ce_scale is not None and (z_scale is ce_scale or not ctx.z_loss_coef)
            if fits:
                for gradient in (gradients.hidden, gradients.weight, gradients.bias):
                    if gradient is not None:
                        gradient.mul_(ce_scale)
            else:
                head = ChunkedHead(hidden, weight, bias, labels, is_supervised(labels), ctx.options)
                zero = hidden.new_zeros((), dtype=head.loss_dtype)
                scales = (zero if scale is None else scale for scale in (ce_scale, z_scale))
                gradients = _cross_entropy_gradients(head, ctx.needs, *scales, ctx.z_loss_coef)
            return *_cast_gradients(gradients, hidden, weight, bias), None, None, None, None


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, options: HeadOptions
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            head = ChunkedHead(hidden, weight, bias, labels, is_supervised(labels), options)
            log_probs = hidden.new_zeros(len(labels), dtype=head.loss_dtype)
            for chunk in head.chunks():
                log_probs[chunk.rows] = chunk.token_log_probs.masked_fill(~chunk.counts, 0.0)
        ctx.save_for_backward(hidden, weight, bias, labels)
        ctx.options = options
        return log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of Σ grad_n log p_n: minus the cross-entropy's, weighted by row."""
        hidden, weight, bias, labels = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            head = ChunkedHead(hidden, weight, bias, labels, is_supervised(labels), ctx.options)
            gradients = HeadGradients(head, ctx.needs_input_grad[:3])
            for chunk in head.chunks():
                coef = -grad[chunk.rows].masked_fill(~chunk.counts, 0.0)
                chunk.backward(gradients, coef, coef)
            return *_cast_gradients(gradients, hidden, weight, bias), None, None


def _cast_gradients(
    gradients: HeadGradients, hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    def cast(gradient: Tensor | None, like: Tensor | None) -> Tensor | None:
        return None if gradient is None or like is None else gradient.to(like.dtype)

    return cast(gradients.hidden, hidden), cast(gradients.weight, weight), cast(gradients.bias, bias)
