"""Multi-head, grouped-query and multi-query attention."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from lmstack.nn.kv_cache import KVCache
from lmstack.nn.masks import AttentionPattern, compiled_on_cuda
from lmstack.nn.positions import Rotation, rotate
from lmstack.nn.precision import to_compute_dtype

CPU_FLASH_MIN_LEN = 512
"""Below this many keys, a CPU's bf16 attention is slower to train than fp32's: its backward pass takes two to five
times as long (torch 2.13, AMX, 64 to 256 keys; equal at 512, 1.2 times faster at 1,024)."""


class CacheSlot(NamedTuple):
    """Where one layer's new keys and values go.

    Attributes:
        cache: The cache of all layers.
        layer: This layer's number.
        position_ids: Slot of each new token.
    """

    cache: KVCache
    layer: int
    position_ids: Int[Tensor, "B T"]


def attend(
    q: Float[Tensor, "B H T C"],
    k: Float[Tensor, "B K S C"],
    v: Float[Tensor, "B K S C"],
    pattern: AttentionPattern,
    *,
    scale: float,
    softcap: float | None = None,
) -> Float[Tensor, "B H T C"]:
    """Softmax attention, `softmax(cap(scale q k) + bias) v`, by the kernel that the pattern was built for.

    Args:
        q: Queries.
        k: Keys; H is a multiple of K.
        v: Values.
        pattern: Who sees whom.
        scale: Multiplies the scores.
        softcap: Scores become `softcap * tanh(scores / softcap)`; None leaves them.
    """
    if pattern.block_mask is not None:
        flex = compiled_on_cuda(flex_attention, q.device)
        return flex(  # type: ignore[no-any-return]
            q,
            k,
            v,
            score_mod=pattern.score_mod,
            block_mask=pattern.block_mask,
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
    if softcap is not None:
        return _attend_softcapped(q, k, v, pattern, scale, softcap)
    # Not a matter of gradients: what is scored without them must be what is trained with them.
    is_whole = q.shape[2] > 1
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and is_whole and k.shape[2] < CPU_FLASH_MIN_LEN:
        with torch.autocast("cpu", enabled=False):
            return _attend_sdpa(q.float(), k.float(), v.float(), pattern, scale).to(q.dtype)
    return _attend_sdpa(q, k, v, pattern, scale)


def _attend_sdpa(
    q: Float[Tensor, "B H T C"],
    k: Float[Tensor, "B K S C"],
    v: Float[Tensor, "B K S C"],
    pattern: AttentionPattern,
    scale: float,
) -> Float[Tensor, "B H T C"]:
    mask = pattern.allowed if pattern.bias is None else pattern.bias.to(q.dtype)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=pattern.is_causal, scale=scale, enable_gqa=grouped
    )


def _attend_softcapped(
    q: Float[Tensor, "B H T C"],
    k: Float[Tensor, "B K S C"],
    v: Float[Tensor, "B K S C"],
    pattern: AttentionPattern,
    scale: float,
    softcap: float,
) -> Float[Tensor, "B H T C"]:
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    scores = softcap * torch.tanh((q @ k.transpose(-2, -1)).float() * (scale / softcap))
    assert not pattern.is_causal, "build_pattern writes the mask out when there is a soft-cap"
    if pattern.allowed is not None:
        scores = scores.masked_fill(~pattern.allowed, float("-inf"))
    if pattern.bias is not None:
        scores = scores + pattern.bias
    return scores.softmax(dim=-1).to(v.dtype) @ v


class Attention(nn.Module):
    """Self-attention with H query heads and K key-value heads (Ainslie et al. 2023, arXiv:2305.13245).

    Queries, keys and values are separate projections: tensor parallelism, LoRA and Muon take them one by one.

    Args:
        dim: Width D of the residual stream.
        num_heads: Number H of query heads.
        num_kv_heads: Number K of key-value heads.
        channels: Channels C of a head.
        qkv_bias: Bias on the query, key and value projections.
        out_bias: Bias on the output projection.
        query_norm: Normalizes each query head before the rotation; None leaves it.
        key_norm: The same for keys.
        scale: Multiplies the scores; None means 1 / sqrt(C).
        softcap: Soft-cap of the scores; None leaves them.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        num_kv_heads: int,
        channels: int,
        qkv_bias: bool = False,
        out_bias: bool = False,
        query_norm: nn.Module | None = None,
        key_norm: nn.Module | None = None,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.scale = 1 / math.sqrt(channels) if scale is None else scale
        self.softcap = softcap
        self.query = nn.Linear(dim, num_heads * channels, bias=qkv_bias)
        self.key = nn.Linear(dim, num_kv_heads * channels, bias=qkv_bias)
        self.value = nn.Linear(dim, num_kv_heads * channels, bias=qkv_bias)
        self.output = nn.Linear(num_heads * channels, dim, bias=out_bias)
        self.query_norm = query_norm
        self.key_norm = key_norm

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        pattern: AttentionPattern,
        rotation: Rotation | None = None,
        cache_slot: CacheSlot | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Let every token look at the tokens that the pattern allows.

        Args:
            x: Activations.
            pattern: Who sees whom.
            rotation: Rotary angles of every token; None leaves queries and keys unturned.
            cache_slot: Where earlier keys and values are and new ones go; None attends within `x`.
        """
        x = to_compute_dtype(x)
        q = self.query(x).unflatten(-1, (-1, self.channels))  # (B, T, H*C) -> (B, T, H, C)
        k = self.key(x).unflatten(-1, (-1, self.channels))
        v = self.value(x).unflatten(-1, (-1, self.channels))
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q).to(v.dtype), self.key_norm(k).to(v.dtype)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache_slot is None:
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        else:
            k, v = cache_slot.cache.update(cache_slot.layer, k, v, cache_slot.position_ids)
            k, v = k.to(q.dtype), v.to(q.dtype)
        attended = attend(q.transpose(1, 2), k, v, pattern, scale=self.scale, softcap=self.softcap)
        return self.output(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
