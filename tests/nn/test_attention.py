"""Attention against a loop over queries, in every variant and kernel."""

import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from lmstack.nn.attention import Attention, attend
from lmstack.nn.masks import AttentionPattern, PatternShape, build_pattern
from lmstack.nn.positions import alibi_slopes

CPU = torch.device("cpu")
DOCUMENTS = torch.tensor([[0] * 4 + [1] * 7 + [-1], [0] * 9 + [2] * 3])


def qkv(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return tuple(torch.randn(2, heads, 12, 8, dtype=dtype, requires_grad=True) for heads in (4, 2, 2))  # type: ignore[return-value]


def by_loop(q: Tensor, k: Tensor, v: Tensor, shape: PatternShape, documents: Tensor | None, scale: float) -> Tensor:
    """Attention of each query on its own, over the keys that it sees."""
    out = torch.zeros_like(q)
    for b, h, t in itertools.product(range(q.shape[0]), range(q.shape[1]), range(q.shape[2])):
        seen = [
            s
            for s in range(k.shape[2])
            if (s <= t or not shape.causal)
            and (shape.window is None or abs(t - s) < shape.window)
            and (documents is None or documents[b, t] == documents[b, s])
        ]
        group = h * k.shape[1] // q.shape[1]
        scores = scale * (k[b, group, seen] @ q[b, h, t])
        if shape.softcap is not None:
            scores = shape.softcap * torch.tanh(scores / shape.softcap)
        if shape.slopes is not None:
            scores = scores - float(shape.slopes[h]) * torch.tensor([abs(t - s) for s in seen])
        out[b, h, t] = scores.softmax(0) @ v[b, group, seen]
    return out


SHAPES: list[dict[str, Any]] = [
    {"causal": causal, "window": window, "softcap": softcap, "slopes": slopes}
    for causal in (True, False)
    for window in (None, 3)
    for softcap in (None, 0.5)
    for slopes in (None, alibi_slopes(4))
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "options", SHAPES, ids=lambda o: "-".join(f"{k}" for k, v in o.items() if v is not None and v is not False)
)
def test_attention_and_its_gradients_equal_a_loop_over_queries(options: dict[str, Any], packed: bool) -> None:
    shape, documents = PatternShape(**options), DOCUMENTS if packed else None
    q, k, v = qkv()
    pattern = build_pattern(shape, batch_size=2, seq_len=12, device=CPU, document_ids=documents, kernel="sdpa")
    direction = torch.randn(2, 4, 12, 8, dtype=torch.float64)
    actual = attend(q, k, v, pattern, scale=0.4, softcap=shape.softcap)
    expected = by_loop(q, k, v, shape, documents, 0.4)
    # fp64, but the soft-cap and ALiBi are computed in fp32.
    tolerance = 1e-12 if shape.softcap is None and shape.slopes is None else 1e-5
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)
    own = torch.autograd.grad(actual, (q, k, v), direction)
    exact = torch.autograd.grad(expected, (q, k, v), direction)
    for one, other in zip(own, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize(
    ("options", "packed"),
    [
        ({"causal": True}, True),
        ({"causal": True, "window": 3}, False),
        ({"causal": True, "softcap": 0.5}, False),
        ({"causal": True, "slopes": alibi_slopes(4)}, False),
        ({"causal": True, "window": 3, "softcap": 0.5, "slopes": alibi_slopes(4)}, True),
        ({"causal": False, "window": 3, "softcap": 0.5, "slopes": alibi_slopes(4)}, True),
    ],
    ids=str,
)
def test_flex_attention_equals_sdpa(options: dict[str, Any], packed: bool) -> None:
    shape, documents = PatternShape(**options), DOCUMENTS if packed else None
    q, k, v = (x.detach() for x in qkv(torch.float32))
    outputs = []
    for kernel in ("sdpa", "flex"):
        pattern = build_pattern(
            shape,
            batch_size=2,
            seq_len=12,
            device=CPU,
            document_ids=documents,
            kernel=kernel,  # type: ignore[arg-type]
        )
        with warnings.catch_warnings():  # flex attention advises to compile it; on a GPU it is
            warnings.simplefilter("ignore")
            outputs.append(attend(q, k, v, pattern, scale=0.4, softcap=shape.softcap))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=2e-6)


def test_grouped_query_attention_is_multi_head_with_repeated_heads() -> None:
    torch.manual_seed(0)
    grouped = Attention(32, num_heads=4, num_kv_heads=2, channels=8)
    full = Attention(32, num_heads=4, num_kv_heads=4, channels=8)
    weights = {name: tensor.clone() for name, tensor in grouped.state_dict().items()}
    for name in ("key.weight", "value.weight"):
        weights[name] = weights[name].unflatten(0, (2, 8)).repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(weights)
    x, pattern = torch.randn(2, 6, 32), AttentionPattern(is_causal=True)
    torch.testing.assert_close(grouped(x, pattern), full(x, pattern), rtol=0, atol=1e-6)


@pytest.mark.parametrize("seq_len", [64, 600])
def test_bf16_attention_on_a_cpu_is_fp32_attention_up_to_rounding(seq_len: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, seq_len, 16).bfloat16().requires_grad_() for _ in range(3))
    exact = [x.detach().float().requires_grad_() for x in (q, k, v)]
    pattern = AttentionPattern(is_causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        actual = attend(q, k, v, pattern, scale=0.25)
    expected = attend(*exact, pattern, scale=0.25)
    assert actual.dtype == torch.bfloat16
    # Values of order one, eight bits of mantissa, rounded a few times.
    torch.testing.assert_close(actual.float(), expected, rtol=0, atol=1e-2 * float(expected.detach().abs().max()))
    direction = torch.randn_like(expected)
    actual.backward(direction.bfloat16())
    expected.backward(direction)
    for own, other in zip((q, k, v), exact, strict=True):
        assert own.grad is not None
        assert other.grad is not None
        difference = (own.grad.float() - other.grad).norm() / other.grad.norm()
        assert float(difference) < 1e-2


def test_query_key_norm_makes_scores_independent_of_the_input_scale() -> None:
    torch.manual_seed(0)

    def outputs(norm: bool) -> list[Tensor]:
        part = Attention(
            16,
            num_heads=2,
            num_kv_heads=2,
            channels=8,
            query_norm=torch.nn.RMSNorm(8) if norm else None,
            key_norm=torch.nn.RMSNorm(8) if norm else None,
        )
        x = torch.randn(1, 6, 16)
        # The values grow with the input; divide that out.
        return [part(scale * x, AttentionPattern(is_causal=True)) / scale for scale in (1.0, 30.0)]

    normed, plain = outputs(True), outputs(False)
    torch.testing.assert_close(normed[0], normed[1], rtol=0, atol=1e-5)
    assert float((plain[0] - plain[1]).detach().abs().max()) > 0.01


def test_scores_are_divided_by_the_root_of_the_channels() -> None:
    assert Attention(16, num_heads=2, num_kv_heads=2, channels=8).scale == 1 / math.sqrt(8)
