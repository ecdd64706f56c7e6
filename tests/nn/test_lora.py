"""Adapters against the formulas of their papers."""

import math

import pytest
import torch
from torch import nn

from lmstack.models.config import AttentionConfig
from lmstack.nn.lora import (
    LoRAConfig,
    LoRALinear,
    add_lora,
    has_lora,
    lora_disabled,
    merge_lora,
    merged_state,
)
from tiny_transformer import tokens, transformer

KINDS = ("lora", "rslora", "dora")


def config(kind: str = "lora", **changes: object) -> LoRAConfig:
    return LoRAConfig(**{"rank": 3, "alpha": 6.0, "kind": kind, **changes})


def trained(model: nn.Module) -> nn.Module:
    """As if trained: no adapter is where it started."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, LoRALinear):
                part.lora_b.copy_(torch.randn(part.lora_b.shape, generator=generator) * 0.2)
                if part.magnitude is not None:
                    part.magnitude.mul_(1 + 0.2 * torch.rand(part.magnitude.shape, generator=generator))
    return model


@pytest.mark.parametrize(("kind", "scaling"), [("lora", 2.0), ("rslora", 6 / math.sqrt(3)), ("dora", 2.0)])
def test_a_layer_computes_the_formula(kind: str, scaling: float) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(5, 4).double(), torch.randn(7, 5, dtype=torch.float64)
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    layer = trained(LoRALinear(linear, config(kind)))
    adapted = weight + scaling * layer.lora_b @ layer.lora_a
    if kind == "dora":
        adapted = layer.magnitude[:, None] * adapted / adapted.pow(2).sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(layer(x), x @ adapted.T + bias, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_new_adapters_change_nothing_bit_for_bit(kind: str, with_bias: bool) -> None:
    model, ids = transformer(attention=AttentionConfig(qkv_bias=with_bias, out_bias=with_bias)), tokens(2, 9)
    before = model(ids)
    add_lora(model, config(kind))
    if kind != "dora" or not with_bias:  # DoRA adds a bias after the product is rounded
        assert torch.equal(model(ids), before)
    with lora_disabled(model):
        disabled = model(ids)
    assert torch.equal(model(ids), disabled)


@pytest.mark.parametrize("kind", KINDS)
def test_disabled_adapters_leave_what_was_and_come_back(kind: str) -> None:
    model, ids = transformer(), tokens(2, 9)
    before = model(ids)
    add_lora(model, config(kind))
    trained(model)
    after = model(ids)
    assert (after - before).abs().max() > 1e-2
    with lora_disabled(model):
        torch.testing.assert_close(model(ids), before, rtol=0, atol=1e-6)
    assert torch.equal(model(ids), after)


def test_adapters_are_enabled_again_after_an_error() -> None:
    model = transformer()
    add_lora(model, config())
    with pytest.raises(RuntimeError), lora_disabled(model):
        raise RuntimeError
    assert all(part.is_enabled for part in model.modules() if isinstance(part, LoRALinear))


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_compute_the_same(kind: str) -> None:
    model, plain, ids = transformer(), transformer(seed=5), tokens(2, 9)
    add_lora(model, config(kind))
    trained(model)
    expected = model(ids)
    plain.load_state_dict(merged_state(model.state_dict(), config(kind)))
    torch.testing.assert_close(plain(ids), expected, rtol=0, atol=1e-5)
    merge_lora(model)
    assert not has_lora(model)
    torch.testing.assert_close(model(ids), expected, rtol=0, atol=1e-5)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_only_adapters_are_trained_and_all_of_them_are(kind: str) -> None:
    model, ids = transformer(), tokens(2, 9)
    names = add_lora(model, config(kind))
    assert len(names) == 2 * 7
    trained(model)
    model(ids).square().sum().backward()
    for name, parameter in model.named_parameters():
        is_adapter = name.rsplit(".", 1)[1] in ("lora_a", "lora_b", "magnitude")
        assert parameter.requires_grad == is_adapter, name
        assert (parameter.grad is not None and parameter.grad.abs().max() > 0) == is_adapter, name


def test_the_gradient_of_an_adapter_is_that_of_its_formula() -> None:
    torch.manual_seed(0)
    layer = trained(LoRALinear(nn.Linear(5, 4).double(), config()))
    x = torch.randn(7, 5, dtype=torch.float64)
    layer(x).square().sum().backward()
    upstream = 2 * layer(x).detach()
    torch.testing.assert_close(layer.lora_b.grad, 2.0 * upstream.T @ x @ layer.lora_a.T)
    torch.testing.assert_close(layer.lora_a.grad, 2.0 * layer.lora_b.T @ upstream.T @ x)


def test_targets_are_ends_of_names_and_an_unknown_one_is_refused() -> None:
    model = transformer()
    assert add_lora(model, config(targets=("attention.query", "down"))) == [
        "blocks.0.attention.query",
        "blocks.0.feed_forward.down",
        "blocks.1.attention.query",
        "blocks.1.feed_forward.down",
    ]
    with pytest.raises(ValueError, match=r"'q_proj'.*attention\.query"):
        add_lora(transformer(), config(targets=("q_proj",)))
    with pytest.raises(ValueError, match="adapters already"):
        add_lora(model, config())


def test_weights_keep_their_names_and_the_dropout_is_on_the_adapter_only() -> None:
    model = transformer()
    names = set(model.state_dict())
    add_lora(model, config(dropout=0.5))
    assert names <= set(model.state_dict())
    ids = tokens(2, 9)
    model.train()
    assert torch.equal(model(ids), model(ids))  # B is 0
    trained(model)
    assert not torch.equal(model(ids), model(ids))
    with lora_disabled(model):
        assert torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


@pytest.mark.parametrize(
    ("changes", "message"), [({"rank": 0}, "rank=0"), ({"alpha": 0.0}, "alpha"), ({"dropout": 1.0}, "dropout")]
)
def test_numbers_out_of_range_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)
