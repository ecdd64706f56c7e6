"""Small transformers and deterministic gradients for the optimizer's tests."""

import torch

from lmstack.models.config import DenseConfig, GaussianInit, LearnedConfig, MuPInit, TransformerConfig
from lmstack.models.transformer import Transformer


def tiny_transformer(*, tied=True, mup=False, dim=16, seed=0) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(
        TransformerConfig(
            vocab_size=11,
            max_seq_len=8,
            dim=dim,
            num_layers=2,
            num_heads=2,
            positions=LearnedConfig(),
            feed_forward=DenseConfig(hidden_dim=3 * dim, bias=True),
            initialization=MuPInit(base_dim=4, base_head_dim=4) if mup else GaussianInit(),
            tied_embeddings=tied,
            head_bias=True,
        )
    )


def set_gradients(module: torch.nn.Module, step: int) -> None:
    """The same gradients whenever a step is repeated."""
    generator = torch.Generator().manual_seed(step)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
