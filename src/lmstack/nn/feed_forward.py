"""The position-wise feed-forward block."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lmstack.nn.precision import to_compute_dtype

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]


def _relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": _relu_squared,
}
"""Non-linearities by their name in a config; `relu2` is So et al. 2021, arXiv:2109.08668."""


class FeedForward(nn.Module):
    """`down(act(up x))`, or gated `down(act(gate x) * up x)` (Shazeer 2020, arXiv:2002.05202, eq. 6).

    Args:
        dim: Width D of the residual stream.
        hidden_dim: Width F of the hidden layer.
        activation: Non-linearity.
        gated: Multiply by a second projection.
        bias: Bias on every projection.
    """

    def __init__(self, dim: int, hidden_dim: int, *, activation: Activation, gated: bool, bias: bool) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.gate = nn.Linear(dim, hidden_dim, bias=bias) if gated else None
        self.up = nn.Linear(dim, hidden_dim, bias=bias)
        self.down = nn.Linear(hidden_dim, dim, bias=bias)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Transform each position on its own.

        Args:
            x: Activations.
        """
        x = to_compute_dtype(x)
        if self.gate is None:
            return self.down(self.activation(self.up(x)))  # type: ignore[no-any-return]
        return self.down(self.activation(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]
