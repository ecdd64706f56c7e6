"""The output head, a chunk of tokens at a time, forward and backward: logits of a whole batch never exist.

The logits of a token are `softcap * tanh((scale * W h + bias) / softcap) / temperature`. Matrix products run in the
dtype of the hidden states (or autocast's); everything between them, and the sum over chunks of the gradient of `W`,
in float32 (float64 for float64 hidden states). Products are in place or between matrices cast already, which autocast
leaves alone: the backward pass may run inside its region or outside.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lmstack.losses.vocabulary_shard import VocabularyShard

CPU_CHUNK_ELEMENTS = 2**23
"""Most logits in a chunk on a CPU: 32 MB of float32 was fastest, and four times that a quarter slower, where a core has
2 MB of cache."""


class HeadOptions(NamedTuple):
    """What turns `W h` into logits, and how the work is cut.

    Attributes:
        chunk_size: Most tokens in a chunk.
        logit_scale: Factor on `W h`.
        logit_softcap: Logits become `softcap * tanh(logits / softcap)`; None leaves them.
        temperature: Divisor of the finished logits.
        compute_dtype: Type of the matrix products.
        shard: Which rows of the head are here; None for all.
    """

    chunk_size: int
    logit_scale: float
    logit_softcap: float | None
    temperature: float
    compute_dtype: torch.dtype
    shard: VocabularyShard | None = None


def compute_dtype(hidden: Float[Tensor, "N D"]) -> torch.dtype:
    """The type in which a linear layer would multiply here: the tensor's own, or autocast's inside its region.

    Args:
        hidden: Input of the layer.
    """
    device = hidden.device.type
    if hidden.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return hidden.dtype


@dataclass
class HeadGradients:
    """Sums of gradients over chunks; None for what does not need one, and for a weight before its first chunk.

    Attributes:
        needs_weight: Whether the head matrix needs one.
        hidden: Gradient of the hidden states.
        weight: Gradient of the head matrix.
        bias: Gradient of the head bias.
    """

    needs_weight: bool
    hidden: Float[Tensor, "N D"] | None = None
    weight: Float[Tensor, "V D"] | None = None
    bias: Float[Tensor, " V"] | None = None


class ChunkedHead:
    """One pass over the tokens of a batch.

    Buffers are allocated once and reused by all chunks: on a CPU, touching fresh pages costs as much as the arithmetic.

    Args:
        hidden: Hidden states of all tokens.
        weight: Head matrix.
        bias: Head bias; None for none.
        labels: Label of each token; any value where `counts` is false.
        counts: Which tokens count. The others get a gradient of zero even where `hidden` is not finite.
        options: Scale, soft-cap, temperature, chunk size.
    """

    def __init__(
        self,
        hidden: Float[Tensor, "N D"],
        weight: Float[Tensor, "V D"],
        bias: Float[Tensor, " V"] | None,
        labels: Int[Tensor, " N"],
        counts: Bool[Tensor, " N"],
        options: HeadOptions,
    ) -> None:
        self.options = options
        self.loss_dtype = torch.promote_types(hidden.dtype, torch.float32)
        # Zeroed here, not multiplied by zero later: a padded position may hold NaN, and 0 * NaN is NaN.
        self.hidden = torch.where(counts[:, None], hidden, 0.0).to(options.compute_dtype)
        self.weight = weight.to(options.compute_dtype)
        self.bias = None if bias is None else bias.to(self.loss_dtype)
        self.labels = labels.masked_fill(~counts, 0)
        self.counts = counts
        self.rows_in_chunk = min(options.chunk_size, max(1, len(hidden)))
        if hidden.device.type == "cpu":
            self.rows_in_chunk = max(1, min(self.rows_in_chunk, CPU_CHUNK_ELEMENTS // len(weight)))
        shape = (self.rows_in_chunk, len(weight))
        self.logits = hidden.new_empty(shape, dtype=self.loss_dtype)
        self.log_probs = torch.empty_like(self.logits)
        self.is_mixed = options.compute_dtype != self.loss_dtype
        self.products = hidden.new_empty(shape, dtype=options.compute_dtype) if self.is_mixed else self.logits

    def chunks(self) -> "Iterator[Chunk]":
        """The tokens in order, each chunk with its log-softmax; it is valid until the next is taken."""
        for start in range(0, len(self.hidden), self.rows_in_chunk):
            yield Chunk(self, slice(start, min(start + self.rows_in_chunk, len(self.hidden))))

    def zero_gradients(self, needs: tuple[bool, bool, bool]) -> HeadGradients:
        """Gradients to add to, before the first chunk.

        Args:
            needs: Whether hidden states, weight and bias need one.
        """
        gradients = HeadGradients(needs_weight=needs[1])
        if needs[0]:
            gradients.hidden = torch.empty_like(self.hidden)  # every chunk writes its own rows
        if needs[2] and self.bias is not None:
            gradients.bias = torch.zeros_like(self.bias)
        return gradients

    def complete(self, gradients: HeadGradients) -> HeadGradients:
        """The gradients after the last chunk; where others hold other rows, what those contribute is added.

        Args:
            gradients: Summed over chunks.
        """
        if self.options.shard is not None:
            self.options.shard.add_up(gradients.hidden)
        return gradients


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
        self.hidden = head.hidden[rows]
        self.labels = head.labels[rows, None]
        self.logits = self._logits()
        out = head.log_probs[: len(self.hidden)]
        self.token_log_probs: Float[Tensor, " N"]
        """Log-probability of each label; 0 where it does not count."""
        self._owned: Tensor | None = None
        self._logsumexp: Tensor | None = None
        if (shard := head.options.shard) is None:
            self.log_probs = torch.log_softmax(self.logits, -1, out=out)
            token_log_probs = self.log_probs.gather(1, self.labels).squeeze(1)
        else:
            self.labels, self._owned = shard.owned(self.labels, len(head.weight))
            self.log_probs, token_log_probs, self._logsumexp = shard.log_softmax(
                self.logits, self.labels, self._owned, out=out
            )
        self.token_log_probs = token_log_probs.masked_fill_(~self.counts, 0.0)

    def _logits(self) -> Float[Tensor, "N V"]:
        head, options, size = self.head, self.head.options, len(self.hidden)
        logits = head.logits[:size]
        products = torch.mm(self.hidden, head.weight.T, out=head.products[:size])
        if head.is_mixed:
            logits.copy_(products)
        if options.logit_scale != 1.0:
            logits.mul_(options.logit_scale)
        if head.bias is not None:
            logits.add_(head.bias)
        if options.logit_softcap is not None:
            logits.div_(options.logit_softcap).tanh_().mul_(options.logit_softcap)
        if options.temperature != 1.0:
            logits.div_(options.temperature)
        return logits

    def logsumexp(self) -> Float[Tensor, " N"]:
        """Log of the sum of exponentials of the logits; 0 where the label does not count."""
        if self._logsumexp is not None:
            return self._logsumexp.masked_fill(~self.counts, 0.0)
        label_logits = self.logits.gather(1, self.labels).squeeze(1)
        return label_logits.masked_fill_(~self.counts, 0.0) - self.token_log_probs

    def backward(
        self,
        gradients: HeadGradients,
        *,
        label_coef: Float[Tensor, " N"] | None = None,
        softmax_coef: Float[Tensor, " N"] | None = None,
    ) -> None:
        """Add this chunk's share to the gradients of `Σ_n (a_n logsumexp_n - b_n logits_n[label_n])`.

        Overwrites the chunk: call it last.

        Args:
            gradients: Added to.
            label_coef: `b`, finite also where the label does not count, which changes nothing; None is one.
            softmax_coef: `a`; None is the same as `b`.
        """
        head, options = self.head, self.head.options
        grad_logits = self._grad_logits(label_coef, softmax_coef)
        if gradients.bias is not None:
            gradients.bias.addmv_(grad_logits.T, self.counts.to(grad_logits.dtype))
        if head.is_mixed:
            grad_logits = head.products[: len(self.hidden)].copy_(grad_logits)
        if gradients.hidden is not None:
            grad_hidden = torch.mm(grad_logits, head.weight, out=gradients.hidden[self.rows])
            grad_hidden.masked_fill_(~self.counts[:, None], 0.0)
            if options.logit_scale != 1.0:
                grad_hidden.mul_(options.logit_scale)
        if gradients.needs_weight:
            self._add_to_weight(gradients, grad_logits.T)

    def _add_to_weight(self, gradients: HeadGradients, grad_logits: Float[Tensor, "V N"]) -> None:
        """Add this chunk's share; the first is taken as it is: on a CPU adding it to 0 costs as much again."""
        head, scale, so_far = self.head, self.head.options.logit_scale, gradients.weight
        if so_far is None:
            share = torch.mm(grad_logits, self.hidden, out=torch.empty_like(head.weight))
            gradients.weight = share.to(head.loss_dtype)
            if scale != 1.0:
                gradients.weight.mul_(scale)
        elif head.is_mixed:
            so_far.add_(grad_logits @ self.hidden, alpha=scale)
        else:
            so_far.addmm_(grad_logits, self.hidden, alpha=scale)

    def _grad_logits(self, label_coef: Tensor | None, softmax_coef: Tensor | None) -> Float[Tensor, "N V"]:
        """Gradient with respect to the logits before the soft-cap, in place of the log-probabilities.

        Rows that do not count are not zeroed here: their hidden states are, and their share of the other gradients is
        masked where it costs D or 1 operations, not V.
        """
        options = self.head.options
        grad_logits = self.log_probs.exp_()
        if label_coef is None:
            at_labels = grad_logits.new_full((1, 1), -1.0).expand_as(self.labels)
        else:
            softmax_coef = label_coef if softmax_coef is None else softmax_coef
            grad_logits.mul_((softmax_coef / options.temperature)[:, None])
            at_labels = -(label_coef / options.temperature)[:, None]
        grad_logits.scatter_add_(1, self.labels, at_labels if self._owned is None else at_labels * self._owned)
        if options.logit_softcap is not None:
            # d/dx softcap tanh(x / softcap) = 1 - tanh²
            tanh = self.logits.mul_(options.temperature / options.logit_softcap)
            grad_logits.addcmul_(grad_logits, tanh.square_(), value=-1.0)
        return grad_logits
