"""One layer: attention and feed-forward around the residual stream."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lmstack.models.config import TransformerConfig
from lmstack.models.parts import attention_scale, norm_of
from lmstack.nn.attention import Attention, CacheSlot
from lmstack.nn.feed_forward import FeedForward
from lmstack.nn.masks import AttentionPattern
from lmstack.nn.positions import Rotation


class Block(nn.Module):
    """Attention and feed-forward around the residual stream.

    Args:
        config: The transformer's config.
    """

    recompute: Callable[..., Tensor] | None = None
    """Calls the block's computation, and again in the backward pass; None keeps its activations."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        attention, feed_forward = config.attention, config.feed_forward
        is_sandwich = config.norm.placement == "sandwich"
        self.is_post_norm = config.norm.placement == "post"
        self.attention_norm = norm_of(config, config.dim)
        self.attention = Attention(
            config.dim,
            num_heads=config.num_heads,
            num_kv_heads=config.kv_heads,
            channels=config.channels,
            qkv_bias=attention.qkv_bias,
            out_bias=attention.out_bias,
            query_norm=norm_of(config, config.channels) if attention.qk_norm else None,
            key_norm=norm_of(config, config.channels) if attention.qk_norm else None,
            scale=attention_scale(config),
            softcap=attention.softcap,
        )
        self.attention_output_norm = norm_of(config, config.dim) if is_sandwich else nn.Identity()
        self.feed_forward_norm = None if config.parallel_residual else norm_of(config, config.dim)
        self.feed_forward = FeedForward(
            config.dim,
            feed_forward.hidden_dim,
            activation=feed_forward.activation,
            gated=feed_forward.gated,
            bias=feed_forward.bias,
        )
        self.feed_forward_output_norm = norm_of(config, config.dim) if is_sandwich else nn.Identity()
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        pattern: AttentionPattern,
        rotation: Rotation | None = None,
        cache_slot: CacheSlot | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Add both branches to the residual stream.

        Args:
            x: The residual stream.
            pattern: Who sees whom.
            rotation: Rotary angles of every token; None for other positions.
            cache_slot: Where earlier keys and values are; None attends within `x`.
        """
        if self.recompute is not None and cache_slot is None and torch.is_grad_enabled():
            return self.recompute(self._add_branches, x, pattern, rotation)
        return self._add_branches(x, pattern, rotation, cache_slot)

    def _add_branches(
        self, x: Tensor, pattern: AttentionPattern, rotation: Rotation | None, cache_slot: CacheSlot | None = None
    ) -> Tensor:
        if self.is_post_norm:
            x = self.attention_norm(x + self._attend(x, pattern, rotation, cache_slot))
            return self.feed_forward_norm(x + self._feed(x))  # type: ignore[no-any-return]
        normed = self.attention_norm(x)
        attended = self._attend(normed, pattern, rotation, cache_slot)
        if self.feed_forward_norm is None:  # parallel residual: both branches read the same input
            return x + attended + self._feed(normed)
        x = x + attended
        return x + self._feed(self.feed_forward_norm(x))

    def _attend(
        self, x: Tensor, pattern: AttentionPattern, rotation: Rotation | None, cache_slot: CacheSlot | None
    ) -> Tensor:
        attended = self.attention(x, pattern, rotation, cache_slot)
        return self.dropout(self.attention_output_norm(attended))  # type: ignore[no-any-return]

    def _feed(self, x: Tensor) -> Tensor:
        return self.dropout(self.feed_forward_output_norm(self.feed_forward(x)))  # type: ignore[no-any-return]
