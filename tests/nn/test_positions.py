"""Rotary angles and their scalings, ALiBi slopes, positions in packed rows."""

import math

import pytest
import torch
from torch import Tensor

from lmstack.nn.positions import (
    RotaryTable,
    alibi_slopes,
    llama3_frequencies,
    ntk_theta,
    positions_in_documents,
    rotary_frequencies,
    rotate,
    yarn_attention_factor,
    yarn_frequencies,
)

CPU = torch.device("cpu")


def test_frequencies_are_powers_of_the_base() -> None:
    expected = torch.tensor([1.0, 10000 ** (-2 / 8), 10000 ** (-4 / 8), 10000 ** (-6 / 8)], dtype=torch.float64)
    torch.testing.assert_close(rotary_frequencies(8, 10000.0), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_angles_at_position_128k_are_those_of_fp64(dtype: torch.dtype) -> None:
    position = 131071
    table = RotaryTable(rotary_frequencies(128, 500000.0))
    cos, sin = table.at(torch.tensor([[position]]), num_positions=131072, device=CPU)
    angles = position * 500000.0 ** (-torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    assert cos.dtype == sin.dtype == torch.float32
    torch.testing.assert_close(cos[0, 0, 0, :64].double(), angles.cos(), rtol=0, atol=1e-7)
    torch.testing.assert_close(sin[0, 0, 0, 64:].double(), angles.sin(), rtol=0, atol=1e-7)
    # Turning a bf16 query loses no more than the query's and the result's own rounding.
    x = torch.randn(1, 1, 1, 128).to(dtype)
    first, second = x.double().chunk(2, -1)
    exact = torch.cat((first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()), -1)
    turned = rotate(x, (cos, sin))
    assert turned.dtype == dtype
    # The result is rounded once to its type. Tables, products and their sum are rounded in fp32, in proportion to the
    # inputs: where two products cancel, not in proportion to the result.
    inputs = (first.abs() + second.abs()).repeat(1, 1, 1, 2)
    bound = torch.finfo(dtype).eps * exact.abs() + 2 * torch.finfo(torch.float32).eps * inputs
    assert ((turned.double() - exact).abs() <= bound).all()


def test_the_gradient_of_a_rotation_is_that_of_finite_differences() -> None:
    x = torch.randn(2, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    rotation = RotaryTable(rotary_frequencies(8, 100.0)).at(slice(0, 3), num_positions=3, device=CPU)
    assert torch.autograd.gradcheck(lambda x: rotate(x, rotation), (x,))


def test_rotation_turns_each_pair_as_a_complex_number() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    cos, sin = RotaryTable(rotary_frequencies(8, 100.0)).at(slice(0, 5), num_positions=5, device=CPU)
    turn = torch.polar(
        torch.ones(5, 4, dtype=torch.float64), torch.outer(torch.arange(5.0), rotary_frequencies(8, 100.0))
    )
    turned = torch.complex(x[..., :4], x[..., 4:]) * turn[:, None]
    torch.testing.assert_close(rotate(x, (cos, sin)), torch.cat((turned.real, turned.imag), -1), rtol=0, atol=1e-6)


def test_scores_depend_only_on_distance() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16).expand(2, 1, 40, 1, 16)
    rotation = RotaryTable(rotary_frequencies(16, 10000.0)).at(slice(0, 40), num_positions=40, device=CPU)
    scores = rotate(q, rotation)[0, :, 0] @ rotate(k, rotation)[0, :, 0].T
    for distance in (0, 1, 7, 30):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-5)
    assert float((scores.diagonal(-1)[0] - scores.diagonal(1)[0]).abs()) > 0.1


def test_the_table_is_exact_in_a_model_cast_to_bf16_and_grows() -> None:
    table = RotaryTable(rotary_frequencies(8, 10000.0))
    short = table.at(slice(0, 4), num_positions=4, device=CPU)
    long = table.at(slice(2, 9), num_positions=9, device=CPU)
    assert torch.equal(short[0][:, 2:], long[0][:, :2])
    assert long[1].shape == (1, 7, 1, 8)


def test_a_table_made_in_inference_mode_can_be_trained_through() -> None:
    table = RotaryTable(rotary_frequencies(8, 10000.0))
    with torch.inference_mode():
        table.at(slice(0, 4), num_positions=4, device=CPU)
    x = torch.randn(1, 4, 1, 8, requires_grad=True)
    rotate(x, table.at(slice(0, 4), num_positions=4, device=CPU)).sum().backward()
    assert x.grad is not None


def test_ntk_keeps_the_highest_frequency_and_stretches_the_lowest_by_the_factor() -> None:
    plain, scaled = rotary_frequencies(64, 10000.0), rotary_frequencies(64, ntk_theta(10000.0, 8.0, 64))
    assert scaled[0] == plain[0] == 1.0
    assert float(plain[-1] / scaled[-1]) == pytest.approx(8.0, rel=1e-12)
    assert (scaled[1:] < plain[1:]).all()


def test_yarn_keeps_fast_frequencies_divides_slow_ones_and_ramps_between() -> None:
    plain = rotary_frequencies(64, 10000.0)
    scaled = yarn_frequencies(
        plain, theta=10000.0, factor=4.0, original_max_seq_len=2048, beta_fast=32.0, beta_slow=1.0
    )
    rotations = 2048 * plain / (2 * math.pi)
    ratio = plain / scaled
    assert torch.allclose(ratio[rotations > 40], torch.ones_like(ratio[rotations > 40]))
    assert torch.allclose(ratio[rotations < 0.7], torch.full_like(ratio[rotations < 0.7], 4.0))
    assert (ratio.diff() >= 0).all()
    assert yarn_attention_factor(4.0) == pytest.approx(0.1 * math.log(4) + 1)
    assert yarn_attention_factor(1.0) == 1.0


def test_llama3_scaling_follows_its_published_piecewise_form() -> None:
    plain = rotary_frequencies(128, 500000.0)
    scaled = llama3_frequencies(plain, factor=8.0, original_max_seq_len=8192, low_freq_factor=1.0, high_freq_factor=4.0)

    def published(frequency: float) -> float:
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4.0:
            return frequency
        if wavelength > 8192 / 1.0:
            return frequency / 8.0
        smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
        return (1 - smooth) * frequency / 8.0 + smooth * frequency

    expected = torch.tensor([published(float(frequency)) for frequency in plain], dtype=torch.float64)
    torch.testing.assert_close(scaled, expected, rtol=1e-12, atol=0)
    assert 0 < int((scaled == plain).sum()) < 64


def test_alibi_slopes_for_eight_and_twelve_heads_are_the_published_ones() -> None:
    eight = [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    rest = [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]  # every second slope of sixteen heads
    torch.testing.assert_close(alibi_slopes(8), torch.tensor(eight))
    torch.testing.assert_close(alibi_slopes(12), torch.tensor(eight + rest))
    torch.testing.assert_close(alibi_slopes(1), torch.tensor([2.0**-8]))


def test_positions_start_anew_with_each_document() -> None:
    ids = torch.tensor([[0, 0, 0, 1, 1, 2, -1], [5, 6, 6, 6, 5, 5, 5]])
    expected: Tensor = torch.tensor([[0, 1, 2, 0, 1, 0, 0], [0, 0, 1, 2, 0, 1, 2]])
    assert torch.equal(positions_in_documents(ids), expected)
