"""Which tokens a query may look at: causality, packed documents, sliding windows and ALiBi, built once a forward."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, and_masks, create_block_mask

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Whether flex attention looks at a pair: (batch, head, query index, key index) -> bool."""

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""What flex attention does to a score: (score, batch, head, query index, key index) -> score."""

_compiled: dict[str, Any] = {}


@dataclass(frozen=True)
class AttentionPattern:
    """What one kind of attention layer may look at, shared by every layer of that kind.

    At most one of the first four is set; none of them means that every query sees every key.

    Attributes:
        is_causal: Query t sees keys up to t of as many keys as queries: kernels know this without a mask.
        allowed: True where a query sees a key.
        bias: Added to the scores, -inf where a query does not see a key.
        block_mask: What flex attention takes; `score_mod` goes with it.
        score_mod: Soft-cap and ALiBi for flex attention; None leaves scores alone.
    """

    is_causal: bool = False
    allowed: Bool[Tensor, "#B 1 T S"] | None = None
    bias: Float[Tensor, "#B H T S"] | None = None
    block_mask: BlockMask | None = None
    score_mod: ScoreMod | None = None


@dataclass(frozen=True)
class PatternShape:
    """What decides an attention pattern besides the tokens.

    Attributes:
        causal: A query sees no later key.
        window: A query sees keys less than `window` away; None: any distance.
        slopes: ALiBi slope of each head, on the CPU; None: no penalty.
        softcap: Scores become `softcap * tanh(scores / softcap)`; None leaves them.
    """

    causal: bool
    window: int | None = None
    slopes: Float[Tensor, " H"] | None = None
    softcap: float | None = None


def build_pattern(
    shape: PatternShape,
    *,
    batch_size: int,
    seq_len: int,
    device: torch.device,
    document_ids: Int[Tensor, "B T"] | None,
    kernel: Literal["sdpa", "flex"],
) -> AttentionPattern:
    """The pattern of a forward without a cache.

    Args:
        shape: Causality, window, ALiBi, soft-cap.
        batch_size: Number B of rows.
        seq_len: Number T of tokens in a row.
        device: Where the tokens are.
        document_ids: Tokens of different documents do not see each other; None: one document a row.
        kernel: Which attention will read it.
    """
    window = shape.window if shape.window is not None and shape.window < seq_len else None
    if document_ids is None and window is None and shape.slopes is None and shape.softcap is None:
        return AttentionPattern(is_causal=shape.causal)
    if kernel == "flex":
        return _flex_pattern(shape, window, batch_size, seq_len, device, document_ids)
    index = torch.arange(seq_len, device=device)
    distance = (index[:, None] - index)[None, None]
    allowed = _within(distance, shape.causal, window)
    if document_ids is not None:
        allowed = allowed & (document_ids[:, None, :, None] == document_ids[:, None, None, :])
    return _dense_pattern(shape, allowed, distance)


def build_cached_pattern(shape: PatternShape, *, position_ids: Int[Tensor, "B T"], extent: int) -> AttentionPattern:
    """The pattern of a forward whose keys are the cache's slots, slot j holding position j.

    Args:
        shape: Causality, window, ALiBi, soft-cap.
        position_ids: Position of each query.
        extent: Slots 0 .. `extent - 1` are read.
    """
    distance = position_ids[:, None, :, None] - torch.arange(extent, device=position_ids.device)
    return _dense_pattern(shape, _within(distance, True, shape.window), distance)


def _within(distance: Int[Tensor, "*shape"], causal: bool, window: int | None) -> Bool[Tensor, "*shape"]:
    allowed = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        allowed = allowed & (distance.abs() < window)
    return allowed


def _dense_pattern(
    shape: PatternShape, allowed: Bool[Tensor, "#B 1 T S"], distance: Int[Tensor, "#B 1 T S"]
) -> AttentionPattern:
    if shape.slopes is None:
        return AttentionPattern(allowed=allowed)
    penalty = -shape.slopes.to(distance.device)[:, None, None] * distance.abs()
    return AttentionPattern(bias=torch.where(allowed, penalty, float("-inf")))


def _flex_pattern(
    shape: PatternShape,
    window: int | None,
    batch_size: int,
    seq_len: int,
    device: torch.device,
    document_ids: Int[Tensor, "B T"] | None,
) -> AttentionPattern:
    # Lambdas, because shape checks wrap every `def` when tests run, and flex attention traces what it is given.
    rules: list[MaskMod] = []
    if shape.causal:
        rules.append(lambda _b, _h, q, kv: q >= kv)
    if window is not None:
        rules.append(lambda _b, _h, q, kv: (q - kv).abs() < window)
    if document_ids is not None:
        rules.append(lambda b, _h, q, kv: document_ids[b, q] == document_ids[b, kv])
    # Uncompiled, create_block_mask would write out all B x T x T pairs.
    create = compiled_on_cuda(create_block_mask, device)
    block_mask = create(
        and_masks(*rules),
        batch_size if document_ids is not None else None,
        None,
        seq_len,
        seq_len,
        device=device,
    )
    return AttentionPattern(block_mask=block_mask, score_mod=_score_mod(shape, device))


def _score_mod(shape: PatternShape, device: torch.device) -> ScoreMod | None:
    softcap = shape.softcap
    slopes = None if shape.slopes is None else shape.slopes.to(device)
    if softcap is None and slopes is None:
        return None

    cap = (lambda score: score) if softcap is None else (lambda score: softcap * torch.tanh(score / softcap))
    if slopes is None:
        return lambda score, _b, _h, _q, _kv: cap(score)
    return lambda score, _b, h, q, kv: cap(score) - slopes[h] * (q - kv).abs()


def compiled_on_cuda(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The function itself on a CPU, its `torch.compile`d form on an accelerator, compiled once a process.

    Args:
        function: A top-level function of torch's flex attention.
        device: Where it will run.
    """
    if device.type == "cpu" or torch.compiler.is_compiling():
        return function
    if function.__name__ not in _compiled:
        _compiled[function.__name__] = torch.compile(function)
    return _compiled[function.__name__]  # type: ignore[no-any-return]
