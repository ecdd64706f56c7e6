"""Standard deviations of initial weights against literal values."""

import math

import pytest
import torch

from lmstack.nn.initialization import depth_scaled, fill_normal, gaussian, mup, tfixup

MATRIX = torch.empty(300, 100)


def test_each_scheme_gives_its_formula() -> None:
    assert gaussian(0.02)("residual", MATRIX) == 0.02
    assert depth_scaled(0.02, 8)("feed_forward", MATRIX) == 0.02
    assert depth_scaled(0.02, 8)("residual", MATRIX) == pytest.approx(0.005)
    xavier = math.sqrt(2 / 400)
    assert tfixup(64, 16)("query_key", MATRIX) == pytest.approx(xavier)
    assert tfixup(64, 16)("value", MATRIX) == pytest.approx(xavier * 0.67 / 2)
    assert tfixup(64, 16)("residual", MATRIX) == pytest.approx(xavier * 0.67 / 2)
    assert tfixup(64, 16)("feed_forward", MATRIX) == pytest.approx(xavier * 0.67 / 2)
    assert tfixup(64, 9)("embedding", MATRIX) == pytest.approx(1 / 8 / 3)
    assert mup(0.02, 256, 1024)("query_key", MATRIX) == pytest.approx(0.01)
    assert mup(0.02, 256, 1024)("embedding", MATRIX) == mup(0.02, 256, 1024)("head", MATRIX) == 0.02


def test_the_same_generator_gives_the_same_weights_and_leaves_the_global_one_alone() -> None:
    state = torch.get_rng_state()
    first, second = torch.empty(50, 40), torch.empty(50, 40)
    fill_normal(first, 0.5, torch.Generator().manual_seed(3))
    fill_normal(second, 0.5, torch.Generator().manual_seed(3))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert float(first.std()) == pytest.approx(0.5, rel=0.1)  # four standard errors of 2,000 draws


def test_meta_tensors_are_left_to_be_filled_later() -> None:
    matrix = torch.empty(4, 4, device="meta")
    fill_normal(matrix, 1.0, torch.Generator())
    assert matrix.is_meta
