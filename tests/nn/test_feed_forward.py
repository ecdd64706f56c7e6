"""Feed-forward blocks against their formulas."""

import math

import pytest
import torch
from torch import Tensor

from lmstack.nn.feed_forward import Activation, FeedForward

FORMULAS = {
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: torch.where(x > 0, x, 0.0),
    "relu2": lambda x: torch.where(x > 0, x, 0.0) ** 2,
}


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", FORMULAS)
def test_a_feed_forward_block_is_its_formula(activation: Activation, gated: bool) -> None:
    torch.manual_seed(0)
    block = FeedForward(6, 10, activation=activation, gated=gated, bias=True).double()
    x = torch.randn(2, 3, 6, dtype=torch.float64)

    def linear(name: str, x: Tensor) -> Tensor:
        part = getattr(block, name)
        return x @ part.weight.T + part.bias

    act = FORMULAS[activation]
    hidden = act(linear("gate", x)) * linear("up", x) if gated else act(linear("up", x))
    torch.testing.assert_close(block(x), linear("down", hidden), rtol=0, atol=1e-12)


def test_biases_are_there_only_when_asked_for() -> None:
    names = {name for name, _ in FeedForward(4, 8, activation="silu", gated=True, bias=False).named_parameters()}
    assert names == {"gate.weight", "up.weight", "down.weight"}
