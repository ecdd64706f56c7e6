"""Normalization over channels."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square normalization with a learned gain (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4).

    Args:
        dim: Channels normalized over.
        eps: Added to the mean square.
    """

    def __init__(self, dim: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def reset_parameters(self) -> None:
        """Set the gain to one."""
        nn.init.ones_(self.weight)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Normalize each position.

        Args:
            x: Activations.
        """
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        """What `print(module)` shows."""
        return f"{self.weight.shape[0]}, eps={self.eps}"


def build_norm(kind: Literal["rms", "layer"], dim: int, *, eps: float, bias: bool) -> RMSNorm | nn.LayerNorm:
    """The normalization layer that a config names.

    Args:
        kind: `rms` or `layer`.
        dim: Channels normalized over.
        eps: Added to the variance.
        bias: A learned offset; only `layer` has one.
    """
    if kind == "rms":
        return RMSNorm(dim, eps=eps)
    return nn.LayerNorm(dim, eps=eps, bias=bias)
