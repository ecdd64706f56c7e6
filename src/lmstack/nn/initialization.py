"""Standard deviations of initial weights, by what a matrix does."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Role = Literal["embedding", "query_key", "value", "feed_forward", "residual", "head"]
"""`residual` writes to the residual stream (attention's output, the feed-forward's `down`); `feed_forward` is
`gate` and `up`; learned positions are an `embedding`."""

StdOf = Callable[[Role, Tensor], float]
"""The standard deviation of a matrix (rows: outputs, columns: inputs) in a role."""


def gaussian(std: float) -> StdOf:
    """The same everywhere.

    Args:
        std: Standard deviation.
    """
    return lambda _role, _matrix: std


def depth_scaled(std: float, num_layers: int) -> StdOf:
    """GPT-2: `std`, and `std / sqrt(2 L)` where a branch writes to the residual stream.

    Args:
        std: Standard deviation before depth scaling.
        num_layers: Number L of blocks, of two branches each.
    """
    return lambda role, _matrix: std / math.sqrt(2 * num_layers) if role == "residual" else std


def tfixup(dim: int, num_layers: int) -> StdOf:
    """In the manner of T-Fixup (Huang et al., ICML 2020, section 3).

    Xavier for matrices, those of value, output and feed-forward times 0.67 L^(-1/4); embeddings
    D^(-1/2) times (9 L)^(-1/4); a head of its own is plain Xavier.

    Args:
        dim: Width D of the residual stream.
        num_layers: Number L of blocks.
    """
    scale = 0.67 * num_layers**-0.25

    def std_of(role: Role, matrix: Tensor) -> float:
        if role == "embedding":
            return float(dim**-0.5 * (9 * num_layers) ** -0.25)
        xavier = math.sqrt(2 / (matrix.shape[0] + matrix.shape[1]))
        return xavier if role in ("query_key", "head") else xavier * scale

    return std_of


def mup(std: float, base_dim: int, dim: int) -> StdOf:
    """Maximal update parametrization (Yang et al. 2022, arXiv:2203.03466, table 8).

    Hidden matrices `std * sqrt(base_dim / dim)`; embedding and head `std` at every width, because the logits are
    multiplied by `base_dim / dim`.

    Args:
        std: Standard deviation at the base width.
        base_dim: Width at which the hyper-parameters were tuned.
        dim: Width D of the residual stream.
    """
    return lambda role, _matrix: std if role in ("embedding", "head") else std * math.sqrt(base_dim / dim)


@torch.no_grad()
def fill_normal(matrix: Tensor, std: float, generator: torch.Generator | None) -> None:
    """Draw a matrix from N(0, std).

    Of a sharded matrix the whole is drawn and each rank keeps its part of the first rank's: the weights are those of
    one process. Drawn shard by shard, equal seeds would make all shards alike.

    Args:
        matrix: Filled in place.
        std: Standard deviation.
        generator: Source of randomness, on the matrix's device or on the CPU; None for torch's own.
    """
    if hasattr(matrix, "device_mesh"):  # a DTensor, whose class takes long to import
        _fill_shards(matrix, std, generator)
    elif generator is not None and generator.device != matrix.device and matrix.device.type != "meta":
        matrix.copy_(torch.empty(matrix.shape, device=generator.device).normal_(0.0, std, generator=generator))
    else:
        matrix.normal_(0.0, std, generator=generator if matrix.device.type != "meta" else None)


def _fill_shards(matrix: Tensor, std: float, generator: torch.Generator | None) -> None:
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(matrix, DTensor)
    whole = torch.empty(matrix.shape, dtype=matrix.dtype, device=matrix.device)
    fill_normal(whole, std, generator)
    if not matrix.is_meta:
        matrix.copy_(distribute_tensor(whole, matrix.device_mesh, matrix.placements))
