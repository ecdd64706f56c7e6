"""Layers in float8: which are replaced, what they compute, and where they are refused."""

import copy

import pytest
import torch
from torch import nn

from lmstack.models.config import DenseConfig
from lmstack.parallel import float8
from tiny_transformer import transformer


def wide() -> nn.Module:
    return transformer(num_layers=1, dim=64, num_heads=4, num_kv_heads=2, feed_forward=DenseConfig(128))


def test_only_linear_layers_in_blocks_are_replaced_and_keep_their_names() -> None:
    model = wide()
    names = list(model.state_dict())
    float8.convert(model, emulate=True)
    replaced = {name for name, layer in model.named_modules() if type(layer).__name__ == "Float8Linear"}
    parts = ("query", "key", "value", "output"), ("gate", "up", "down")
    wanted = {f"blocks.0.attention.{name}" for name in parts[0]} | {
        f"blocks.0.feed_forward.{name}" for name in parts[1]
    }
    assert replaced == wanted
    assert list(model.state_dict()) == names


def test_a_layer_computes_what_it_did_within_float8s_rounding() -> None:
    """3 bits of mantissa forward: 6 % a number at most, 4 % of the product's norm; 2 bits for what comes back."""
    plain = wide()
    rounded = float8.convert(copy.deepcopy(plain), emulate=True)
    results = []
    for model in (plain, rounded):
        layer = model.blocks[0].feed_forward.up
        x = torch.randn(32, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
        output = layer(x)
        output.backward(torch.randn(32, 128, generator=torch.Generator().manual_seed(1)))
        results.append((output.detach(), layer.weight.grad, x.grad))
    for exact, found, limit in zip(*results, (0.06, 0.12, 0.12), strict=True):
        assert 0 < (found - exact).norm() < limit * exact.norm()


def test_layers_that_the_kernels_do_not_take_stay() -> None:
    assert not float8.is_converted(nn.Linear(24, 16), "blocks.0.up")
    assert not float8.is_converted(nn.Linear(32, 16), "head")
    assert float8.is_converted(nn.Linear(32, 16), "transformer.blocks.0.up")


def test_a_machine_without_cuda_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"precision=fp8: needs a CUDA device. Use precision=bf16_mixed"):
        float8.Float8()


def test_an_older_gpu_is_refused_by_its_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert float8.why_not_here() == "A100 has compute capability 8.0, and float8 needs 8.9"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert float8.why_not_here() is None
    monkeypatch.setattr(float8, "find_spec", lambda name: None)
    assert float8.why_not_here() == "needs torchao: pip install 'lmstack[fp8]'"


def test_a_stage_that_samples_from_its_model_is_refused() -> None:
    model = wide()
    model.automatic_optimization = False  # type: ignore[assignment]
    with pytest.raises(ValueError, match="samples from the model that it trains"):
        float8.convert(model)
