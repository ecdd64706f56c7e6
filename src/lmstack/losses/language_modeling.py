"""Next-token losses from hidden states: cross-entropy with z-loss, and log-probabilities of given tokens."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmstack.losses.output_head import Chunk, ChunkedHead, HeadGradients, HeadOptions, compute_dtype
from lmstack.losses.reduction import count_supervised, is_supervised
from lmstack.losses.vocabulary_shard import VocabularyShard, split_head


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
        head_weight: Output matrix; rows sharded by tensor parallelism stay where they are.
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
    head_weight, head_bias, shard = split_head(head_weight, head_bias)
    options = _head_options(flat, chunk_size, logit_scale, logit_softcap, 1.0, shard)
    flat_labels = labels.reshape(-1)
    cross_entropy, z_loss = _apply(
        _CrossEntropySum, flat, head_weight, head_bias, flat_labels, options, z_loss_coef, torch.is_grad_enabled()
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
        head_weight: Output matrix; rows sharded by tensor parallelism stay where they are.
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
    head_weight, head_bias, shard = split_head(head_weight, head_bias)
    options = _head_options(flat, chunk_size, logit_scale, logit_softcap, temperature, shard)
    out: Tensor = _apply(_TokenLogProbs, flat, head_weight, head_bias, labels.reshape(-1), options)
    return out.reshape(labels.shape)


def _head_options(
    hidden: Tensor,
    chunk_size: int,
    logit_scale: float,
    logit_softcap: float | None,
    temperature: float,
    shard: VocabularyShard | None,
) -> HeadOptions:
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: must be at least 1 token. 4096 suits most models.")
    return HeadOptions(chunk_size, logit_scale, logit_softcap, temperature, compute_dtype(hidden), shard)


def _apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """Run outside the graph of a compiled caller: it would unroll the chunks, and compile for minutes."""
    apply: Callable[..., Any] = function.apply
    if torch.compiler.is_compiling():
        apply = torch.compiler.disable(apply)  # type: ignore[no-untyped-call]
    return apply(*args)


class _CrossEntropySum(torch.autograd.Function):
    """The two sums; their gradients are computed with them, for an upstream gradient of one."""

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
        ctx.needs = tuple(is_grad_enabled and needed for needed in ctx.needs_input_grad[:3])
        head = ChunkedHead(hidden, weight, bias, labels, is_supervised(labels), options)
        gradients = head.zero_gradients(ctx.needs)
        cross_entropy = hidden.new_zeros((), dtype=head.loss_dtype)
        z_loss = torch.zeros_like(cross_entropy)
        for chunk in head.chunks():
            cross_entropy -= chunk.token_log_probs.sum()
            if z_loss_coef:
                z_loss += z_loss_coef * chunk.logsumexp().square().sum()
            if any(ctx.needs):
                _add_gradients(chunk, gradients, z_loss_coef)
        ctx.save_for_backward(hidden, weight, bias, labels)
        ctx.gradients, ctx.options, ctx.z_loss_coef = head.complete(gradients), options, z_loss_coef
        ctx.set_materialize_grads(False)
        return cross_entropy, z_loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ce_grad: Tensor | None, z_grad: Tensor | None) -> tuple[Tensor | None, ...]:
        """Scale the gradients of the forward pass; compute them again where they do not fit or are used up."""
        hidden, weight, bias, labels = ctx.saved_tensors
        likes = (hidden, weight, bias)
        gradients, ctx.gradients = ctx.gradients, None
        # `cross_entropy + z_loss` hands the very same tensor to both: known without waiting for the device's numbers.
        is_one_factor = ce_grad is not None and (z_grad is ce_grad or not ctx.z_loss_coef)
        if gradients is not None and is_one_factor:
            return *_finished(gradients, likes, ce_grad), None, None, None, None
        head = ChunkedHead(hidden, weight, bias, labels, is_supervised(labels), ctx.options)
        zero = hidden.new_zeros((), dtype=head.loss_dtype)
        gradients = head.zero_gradients(ctx.needs)
        for chunk in head.chunks():
            _add_weighted_gradients(
                chunk,
                gradients,
                ctx.z_loss_coef,
                ce_grad=zero if ce_grad is None else ce_grad,
                z_grad=zero if z_grad is None else z_grad,
            )
        return *_finished(head.complete(gradients), likes), None, None, None, None


def _add_gradients(chunk: Chunk, gradients: HeadGradients, z_loss_coef: float) -> None:
    """Add the gradient of cross-entropy + z-loss."""
    if z_loss_coef:
        one = torch.ones_like(chunk.token_log_probs[:1]).squeeze(0)
        _add_weighted_gradients(chunk, gradients, z_loss_coef, ce_grad=one, z_grad=one)
    else:
        chunk.backward(gradients)


def _add_weighted_gradients(
    chunk: Chunk, gradients: HeadGradients, z_loss_coef: float, *, ce_grad: Tensor, z_grad: Tensor
) -> None:
    """Add the gradient of ce_grad * cross-entropy + z_grad * z-loss."""
    softmax_coef = ce_grad + z_grad * 2.0 * z_loss_coef * chunk.logsumexp()
    chunk.backward(gradients, label_coef=ce_grad.expand_as(softmax_coef), softmax_coef=softmax_coef)


class _TokenLogProbs(torch.autograd.Function):
    """Log-probabilities; the backward pass computes the logits again, as each token has its own upstream gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, options: HeadOptions
    ) -> Tensor:
        head = ChunkedHead(hidden, weight, bias, labels, is_supervised(labels), options)
        log_probs = hidden.new_zeros(len(labels), dtype=head.loss_dtype)
        for chunk in head.chunks():
            log_probs[chunk.rows] = chunk.token_log_probs
        ctx.save_for_backward(hidden, weight, bias, labels)
        ctx.options = options
        return log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Minus the gradient of the cross-entropy, weighted by token."""
        hidden, weight, bias, labels = ctx.saved_tensors
        head = ChunkedHead(hidden, weight, bias, labels, is_supervised(labels), ctx.options)
        gradients = head.zero_gradients(ctx.needs_input_grad[:3])
        for chunk in head.chunks():
            chunk.backward(gradients, label_coef=-grad[chunk.rows].masked_fill(~chunk.counts, 0.0))
        return *_finished(head.complete(gradients), (hidden, weight, bias)), None, None


def _finished(
    gradients: HeadGradients, likes: tuple[Tensor, Tensor, Tensor | None], factor: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Gradients times `factor` in the dtypes of what they belong to; rounds once, after multiplying."""

    def finish(gradient: Tensor | None, like: Tensor | None) -> Tensor | None:
        if gradient is None or like is None:
            return None
        if factor is not None:
            gradient = gradient.to(torch.promote_types(gradient.dtype, like.dtype)).mul_(factor)
        return gradient.to(like.dtype)

    weight = gradients.weight
    if weight is None and gradients.needs_weight:  # there was no chunk
        weight = torch.zeros_like(likes[1])
    return tuple(map(finish, (gradients.hidden, weight, gradients.bias), likes))
