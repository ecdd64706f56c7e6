"""Counted costs against real modules and counted operations."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lmstack.models import Transformer, TransformerConfig
from lmstack.models.accounting import count_parameters, flops_per_token, kv_cache_bytes
from lmstack.models.config import AttentionConfig, DenseConfig, LearnedConfig, NormConfig
from lmstack.nn.kv_cache import KVCache
from tiny_transformer import config, tokens, transformer

PRESETS = sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))
SIZES = {  # total parameters at the vocabulary that the preset's comment names
    "byte_tiny": (257, 0.84e6),
    "char_tiny": (65, 0.80e6),
    "demo": (4096, 2.56e6),
    "llama_5m": (8192, 5.1e6),
    "llama_20m": (16384, 20.4e6),
    "llama_60m": (32000, 60.7e6),
    "gpt2_124m": (50257, 124.4e6),
    "llama_350m": (32000, 355e6),
    "llama_1b": (32000, 1100e6),
    "llama3_8b": (128256, 8030e6),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped-query": {},
    "sandwich, query-key norm, biases": {
        "norm": NormConfig(kind="layer", bias=True, placement="sandwich"),
        "attention": AttentionConfig(qkv_bias=True, out_bias=True, qk_norm=True),
        "feed_forward": DenseConfig(40, bias=True),
        "embedding_norm": True,
    },
    "post": {"norm": NormConfig(placement="post"), "feed_forward": DenseConfig(40, gated=False, bias=True)},
    "parallel": {"parallel_residual": True, "norm": NormConfig(placement="sandwich")},
    "learned, untied, head bias": {"positions": LearnedConfig(), "tied_embeddings": False, "head_bias": True},
    "wide heads, multi-query": {"head_dim": 12, "num_kv_heads": 1},
}


def preset(path: Path) -> TransformerConfig:
    values = yaml.safe_load(path.read_text())["transformer"]
    assert values.pop("vocab_size") == "${vocab_size:${data.path}}"
    assert values.pop("max_seq_len") == "${data.sequence_length}"
    return TransformerConfig.from_dict({**values, "vocab_size": SIZES[path.stem][0], "max_seq_len": 1024})


def numel(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_has_the_parameters_that_are_counted_and_that_its_name_says(path: Path) -> None:
    shape = preset(path)
    with torch.device("meta"):
        model = Transformer(shape)
    count = count_parameters(shape)
    assert count.total == numel(model)
    nominal = SIZES[path.stem][1] + (1024 - 64) * shape.dim * (path.stem == "char_tiny")
    assert count.total == pytest.approx(nominal, rel=0.01)


def test_every_preset_has_its_size_listed() -> None:
    assert {path.stem for path in PRESETS} == SIZES.keys()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_part_of_the_count_is_that_of_the_module(variant: str) -> None:
    model = transformer(**VARIANTS[variant])
    count = count_parameters(model.config)
    named = {name: parameter.numel() for name, parameter in model.named_parameters()}

    def of(*parts: str, without: str = "\0") -> int:
        return sum(n for name, n in named.items() if any(part in name for part in parts) and without not in name)

    assert count.total == numel(model)
    assert count.embedding == of("embedding.weight")
    assert count.attention == of(".attention.", without="norm")
    assert count.feed_forward == of(".feed_forward.")
    assert count.norms == of("norm")
    assert count.head == sum(n for name, n in named.items() if name.startswith("head"))
    assert count.non_embedding == count.attention + count.feed_forward + count.norms
    in_blocks = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2)
    assert count.matmul == in_blocks + model.head_weight.numel()


@pytest.mark.parametrize("variant", VARIANTS)
def test_flops_with_full_attention_are_those_counted_in_a_training_step(variant: str) -> None:
    model = transformer(**VARIANTS[variant])
    ids = tokens(2, 24)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.logits(model(ids)).sum().backward()
    assert flops_per_token(model.config, 24, "full_attention") == counter.get_total_flops() / ids.numel()


def test_flops_with_causal_attention_count_only_the_pairs_that_are_seen() -> None:
    attention = AttentionConfig(window=5, full_every=2)
    for causal in (True, False):
        model = transformer(attention=attention, causal=causal)
        patterns = model._patterns(tokens(1, 24), torch.zeros(1, 24, dtype=torch.long))
        pairs = sum(int(patterns[window].allowed.sum()) for window in model._windows)  # type: ignore[union-attr]
        expected = 6 * count_parameters(model.config).matmul + 12 * 32 * pairs / 24
        assert flops_per_token(model.config, 24, "causal_attention") == pytest.approx(expected, rel=1e-12)


def test_six_n_is_six_times_the_parameters_outside_tables_and_head() -> None:
    shape = preset(Path(PRESETS[0]).with_name("gpt2_124m.yaml"))
    # GPT-2 small has 85M parameters in its blocks (12 layers x 7.09M) and 1,536 in its final norm.
    assert flops_per_token(shape, 1024, "6n") == 6 * (12 * 7_087_872 + 1536)


def test_the_cache_has_the_bytes_that_are_counted() -> None:
    shape = config()
    cache = KVCache(shape, 3, 20, dtype=torch.bfloat16)
    total = sum(tensor.numel() * 2 for tensor in cache.keys + cache.values)
    assert kv_cache_bytes(shape, 3, 20, 2) == total
