"""Small transformers for tests."""

from typing import Any

import torch
from torch import Tensor

from lmstack.models import Transformer, TransformerConfig
from lmstack.models.config import DenseConfig, GaussianInit, RotaryConfig


def config(**changes: Any) -> TransformerConfig:
    """A grouped-query transformer of two blocks with scaled-up weights, changed as asked."""
    values: dict[str, Any] = {
        "vocab_size": 31,
        "max_seq_len": 32,
        "dim": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "positions": RotaryConfig(),
        "feed_forward": DenseConfig(48),
        "initialization": GaussianInit(0.3),
    }
    return TransformerConfig(**{**values, **changes})


def transformer(seed: int = 0, **changes: Any) -> Transformer:
    """`config(**changes)` with random weights, gains and biases included."""
    torch.manual_seed(seed)
    model = Transformer(config(**changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.normal_(1.0 if "norm.weight" in name else 0.0, 0.3)
    return model


def tokens(batch_size: int, seq_len: int, seed: int = 1, vocab_size: int = 31) -> Tensor:
    """Random tokens."""
    return torch.randint(vocab_size, (batch_size, seq_len), generator=torch.Generator().manual_seed(seed))


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of every parameter, by name."""
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
