"""Normalization against its formula."""

import pytest
import torch
from torch import nn

from lmstack.nn.norms import RMSNorm, build_norm


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rms_norm_is_its_formula(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = RMSNorm(16, eps=1e-3).to(dtype)
    with torch.no_grad():
        norm.weight.normal_()
    x = (torch.randn(3, 5, 16) * 4).to(dtype).requires_grad_()
    weight, exact = norm.weight.detach().double().requires_grad_(), x.detach().double().requires_grad_()
    expected = exact / (exact.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight
    actual = norm(x)
    assert actual.dtype == dtype
    direction = torch.randn(3, 5, 16).to(dtype)
    actual.backward(direction)
    expected.backward(direction.double())
    # Each result is rounded once to the type; the gain's gradient sums fifteen products.
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    for own, exactly in ((actual, expected), (x.grad, exact.grad), (norm.weight.grad, weight.grad)):
        assert own is not None
        assert exactly is not None
        scale = float(exactly.detach().abs().max())
        assert float((own.detach().double() - exactly.detach()).abs().max()) <= tolerance * scale


def test_gradients_of_rms_norm_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    norm = RMSNorm(6, eps=1e-2).double()
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)
    call = lambda x, weight: torch.func.functional_call(norm, {"weight": weight}, x)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, weight))


def test_a_norm_is_what_its_name_says() -> None:
    assert isinstance(build_norm("rms", 8, eps=1e-5, bias=False), RMSNorm)
    layer = build_norm("layer", 8, eps=1e-5, bias=False)
    assert isinstance(layer, nn.LayerNorm)
    assert layer.bias is None
