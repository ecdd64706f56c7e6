"""The output head, a chunk of tokens at a time, forward and backward: logits of a whole batch never exist.

The logits of a row are `softcap * tanh((scale * W h + bias) / softcap) / temperature`. Matrix products run in the
dtype of the hidden states (or autocast's); everything between them, and the sum over chunks of the gradient of `W`,
in float32 (float64 for float64 hidden states).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

CPU_CHUNK_ELEMENTS = 2**22
"""Most logits in a chunk on a CPU: there, smaller chunks stay in its cache and larger ones save nothing."""


class HeadOptions(NamedTuple):
    """What turns `W h` into logits, and how it is cut.

    Attributes:
        chunk_size: Most tokens in a chunk.
        logit_scale: Factor on `W h`.
        logit_softcap: Logits become `softcap * tanh(logits / softcap)`; None leaves them.
        temperature: Divisor of the finished logits.
        compute_dtype: Type of the matrix products.
    """

    chunk_size: int
    logit_scale: float
    logit_softcap: float | None
    temperature: float
    compute_dtype: torch.dtype


def compute_dtype(hidden: Float[Tensor, "N D"]) -> torch.dtype:
    """The type in which a linear layer would multiply here: the tensor's own, or autocast's inside its region.

    Args:
        hidden: Input of the layer.
    """
    device = hidden.device.type
    if hidden.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return hidden.dtype


class ChunkedHead:
    """One pass over the tokens of a batch.

    Buffers are allocated once and reused by all chunks: on a CPU, touching fresh pages costs as much as the arithmetic.

    Args:
        hidden: Hidden states of all tokens.
        weight: Head matrix.
        bias: Head bias; None for none.
        labels: Label of each token; any value where `counts` is false.
        counts: Which tokens count. The others have loss zero and gradient zero even where `hidden` is not finite.
        options: Scale, soft-cap, temperature, chunk size.
    """

    def __init__(
        self,
        hidden: Float[Tensor, "N D"],
        weight: Float[Tensor, "V D"],
        bias: Float[Tensor, " V"] | None,
        labels: Int[Tensor, " N"],
        counts: Tensor,
        options: HeadOptions,
    ) -> None:
        self.options = options
        self.loss_dtype = torch.promote_types(hidden.dtype, torch.float32)
        self.hidden = hidden
        self.weight = weight.to(options.compute_dtype)
        self.bias = None if bias is None else bias.to(self.loss_dtype)
        self.labels = labels.masked_fill(~counts, 0)
        self.counts = counts
        self.num_rows = self._rows_in_a_chunk()
        shape = (self.num_rows, weight.shape[0])
        self._logits = hidden.new_empty(shape, dtype=self.loss_dtype)
        self._log_probs = torch.empty_like(self._logits)
        is_mixed = options.compute_dtype != self.loss_dtype
        self._products = hidden.new_empty(shape, dtype=options.compute_dtype) if is_mixed else self._logits
        self._grad_logits = self._products if is_mixed else self._log_probs

    def _rows_in_a_chunk(self) -> int:
        rows = min(self.options.chunk_size, max(1, self.hidden.shape[0]))
        if self.hidden.device.type == "cpu":
            rows = min(rows, max(1, CPU_CHUNK_ELEMENTS // self.weight.shape[0]))
        return rows

    def chunks(self) -> "Iterator[Chunk]":
        """The tokens in order, each chunk with its log-softmax computed; a chunk is valid until the next is taken."""
        for start in range(0, self.hidden.shape[0], self.num_rows):
            yield Chunk(self, slice(start, min(start + self.num_rows, self.hidden.shape[0])))


class Chunk:
    """Neighbouring tokens, their logits and the log of their probabilities.

    Args:
        head: The pass that this is part of.
        rows: Which tokens.
    """

    def __init__(self, head: ChunkedHead, rows: slice) -> None:
        self.head = head
        self.rows = rows
        self.counts = head.counts[rows]
        self.labels = head.labels[rows, None]
        # Zeroed, not multiplied by zero later: a padded position may hold NaN, and 0 * NaN is NaN.
        self.hidden = head.hidden[rows].to(head.options.compute_dtype).masked_fill(~self.counts[:, None], 0.0)
        size = len(self.hidden)
        self.logits = self._compute_logits(size)
        self.log_probs = torch.log_softmax(self.logits, -1, out=head._log_probs[:size])
        self.token_log_probs = self.log_probs.gather(1, self.labels).squeeze(1)
        self.logsumexp = self.logits.gather(1, self.labels).squeeze(1) - self.token_log_probs

    def _compute_logits(self, size: int) -> Float[Tensor, "N V"]:
        head, options = self.head, self.head.options
        logits = head._logits[:size]
        product = torch.mm(self.hidden, head.weight.T, out=head._products[:size])
        if product is not logits and head._products is not head._logits:
            logits.copy_(product)
        if options.logit_scale != 1.0:
            logits.mul_(options.logit_scale)
        if head.bias is not None:
            logits.add_(head.bias)
        if options.logit_softcap is not None:
            logits.div_(options.logit_softcap).tanh_().mul_(options.logit_softcap)
        if options.temperature != 1.0:
            logits.div_(options.temperature)
        return logits

    def backward(self, into: "HeadGradients", softmax_coef: Tensor | None = None, label_coef: Tensor | None = None) -> None:
        """Add this chunk's share to the gradients of `Σ_n a_n logsumexp_n - b_n logit_n[label_n]` over counted tokens.

        Overwrites the chunk: call it last.

        Args:
            into: Gradients to add to.
            softmax_coef: `a`; None is one.
            label_coef: `b`; None is one.
        """
        head, options = self.head, self.head.options
        if softmax_coef is not None:
            softmax_coef = softmax_coef / options.temperature
            label_coef = label_coef / options.temperature
        grad_logits = self.log_probs.exp_()
        if softmax_coef is not None:
            grad_logits.mul_(softmax_coef[:, None])
        minus_one_hot = -torch.ones_like(self.token_log_probs) if label_coef is None else -label_coef
        grad_logits.scatter_add_(1, self.labels, minus_one_hot[:, None].to(grad_logits.dtype))
        if options.logit_softcap is not None:
            # d/dx softcap tanh(x / softcap) = 1 - tanh²
            tanh = self.logits.mul_(options.temperature / options.logit_softcap)
            grad_logits.addcmul_(grad_logits, tanh.square_(), value=-1.0)
        if into.bias is not None:
            into.bias.addmv_(grad_logits.T, self.counts.to(grad_logits.dtype))
        if head._grad_logits is not head._log_probs:
            grad_logits = head._grad_logits[: len(self.hidden)].copy_(grad_logits)
        if into.hidden is not None:
            grad_hidden = (grad_logits @ head.weight).masked_fill_(~self.counts[:, None], 0.0)
            torch.mul(grad_hidden, options.logit_scale, out=into.hidden[self.rows])
        if into.weight is not None:
            _add_product(into.weight, grad_logits.T, self.hidden, options.logit_scale)


def _add_product(total: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right, alpha=scale)
    else:
        total.add_(left @ right, alpha=scale)


class HeadGradients:
    """Gradients that a pass adds up; None for what does not need one.

    Args:
        head: The pass.
        needs: Whether hidden states, weight and bias need a gradient.
    """

    def __init__(self, head: ChunkedHead, needs: tuple[bool, bool, bool]) -> None:
        dtype = head.loss_dtype
        self.hidden = torch.empty_like(head.hidden) if needs[0] else None
        self.weight = torch.zeros_like(head.weight, dtype=dtype) if needs[1] else None
        self.bias = torch.zeros_like(head.bias) if needs[2] and head.bias is not None else None
