from typing import Any

import pytest
import torch

from lmstack.models import Transformer, TransformerConfig
from lmstack.models.config import (
    AttentionConfig,
    DenseConfig,
    DepthScaledInit,
    LearnedConfig,
    NormConfig,
    RotaryConfig,
)
from lmstack.models.initial_weights import initial_weights
from lmstack.models.transformer import deferred_weights

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "untied, head bias": {"tied_embeddings": False, "head_bias": True},
    "gpt2": {
        "positions": LearnedConfig(),
        "norm": NormConfig(kind="layer", bias=True),
        "attention": AttentionConfig(qkv_bias=True, out_bias=True, qk_norm=True),
        "feed_forward": DenseConfig(hidden_dim=24, gated=False, bias=True),
        "embedding_norm": True,
    },
}


def config(shape: str) -> TransformerConfig:
    base = {
        "vocab_size": 19,
        "max_seq_len": 8,
        "dim": 16,
        "num_layers": 3,
        "num_heads": 2,
        "positions": RotaryConfig(),
        "feed_forward": DenseConfig(hidden_dim=24),
        "initialization": DepthScaledInit(std=0.1),
    }
    return TransformerConfig(**(base | SHAPES[shape]))


@pytest.mark.parametrize("shape", SHAPES)
def test_one_by_one_they_are_those_of_a_transformer_built_whole(shape: str) -> None:
    torch.manual_seed(4)
    state = torch.get_rng_state()
    wanted = Transformer(config(shape)).state_dict()
    found = dict(initial_weights(config(shape), state))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_a_deferred_transformer_has_no_weights_but_knows_what_they_will_be() -> None:
    torch.manual_seed(4)
    with deferred_weights():
        transformer = Transformer(config("llama"))
    assert all(parameter.is_meta for parameter in transformer.parameters())
    torch.manual_seed(4)
    wanted = Transformer(config("llama")).state_dict()
    assert transformer.random_state is not None
    found = dict(initial_weights(transformer.config, transformer.random_state))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_transformers_are_built_whole_again_afterwards() -> None:
    with deferred_weights():
        pass
    assert not Transformer(config("llama")).embedding.weight.is_meta
