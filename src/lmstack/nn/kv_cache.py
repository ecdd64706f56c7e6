"""Keys and values of the tokens so far, preallocated."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class CacheShape(Protocol):
    """What a cache needs to know of a transformer; its config fits."""

    @property
    def num_layers(self) -> int:
        """Number L of blocks."""

    @property
    def kv_heads(self) -> int:
        """Number K of key-value heads."""

    @property
    def channels(self) -> int:
        """Channels C of a head."""


class KVCache:
    """Keys and values of every layer, (B, K, S, C) each, slot j of a row holding its position j.

    A forward writes its tokens at their positions and attends to slots up to each query's position. Rows may be of
    different lengths, padded on the right: what padding wrote is overwritten before any real token's position
    reaches it.

    Args:
        config: The transformer's shape.
        batch_size: Number B of rows.
        max_len: Number S of slots.
        device: Where the cache lives.
        dtype: Type of keys and values; None takes torch's default.
    """

    extent: int
    """Every position written so far, this forward's included, is below it. The caller sets it before a forward."""

    def __init__(
        self,
        config: CacheShape,
        batch_size: int,
        max_len: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (batch_size, config.kv_heads, max_len, config.channels)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]
        self.max_len = max_len
        self.extent = 0

    @property
    def batch_size(self) -> int:
        """Number B of rows."""
        return self.keys[0].shape[0]

    def update(
        self,
        layer: int,
        keys: Float[Tensor, "B T K C"],
        values: Float[Tensor, "B T K C"],
        position_ids: Int[Tensor, "B T"],
    ) -> tuple[Float[Tensor, "B K S C"], Float[Tensor, "B K S C"]]:
        """Write a layer's new keys and values, and return all of them up to `extent`.

        Args:
            layer: Which block asks, from 0.
            keys: Keys of the new tokens.
            values: Values of the new tokens.
            position_ids: Slot each of them goes to.
        """
        rows = torch.arange(keys.shape[0], device=keys.device)[:, None]
        self.keys[layer][rows, :, position_ids] = keys.to(self.keys[layer].dtype)
        self.values[layer][rows, :, position_ids] = values.to(self.values[layer].dtype)
        return self.keys[layer][:, :, : self.extent], self.values[layer][:, :, : self.extent]

    def select(self, rows: Int[Tensor, " N"]) -> None:
        """Keep only these rows, in this order.

        Args:
            rows: Indices into the batch.
        """
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]
