import dataclasses

import pytest
import torch

from lmstack.models.accounting import count_parameters
from lmstack.models.config import DenseConfig, GaussianInit, RotaryConfig, TransformerConfig
from lmstack.planning.measured_speed import MAX_SLICE_PARAMETERS, measure_speed, sliced

SMALL = TransformerConfig(
    vocab_size=50,
    max_seq_len=16,
    dim=16,
    num_layers=2,
    num_heads=2,
    positions=RotaryConfig(),
    feed_forward=DenseConfig(hidden_dim=32),
    initialization=GaussianInit(),
)
LARGE = dataclasses.replace(
    SMALL, vocab_size=128_256, dim=1024, num_layers=16, num_heads=8, feed_forward=DenseConfig(hidden_dim=2816)
)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_a_speed_is_measured_and_says_how(precision: str) -> None:
    speed = measure_speed(SMALL, micro_batch_size=2, sequence_length=8, precision=precision, budget_seconds=0.0)
    assert speed.flops_per_second > 0
    assert speed.source == f"measured here: 2 of 2 layers, 16 tokens, {precision}"


def test_measuring_leaves_the_random_state_and_gradient_mode_alone() -> None:
    before = torch.get_rng_state()
    with torch.no_grad():
        measure_speed(SMALL, micro_batch_size=1, sequence_length=8, precision="32-true", budget_seconds=0.0)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_small_model_is_measured_whole_and_a_large_one_by_a_slice_of_its_width() -> None:
    assert sliced(SMALL) == SMALL
    part = sliced(LARGE)
    assert (part.dim, part.num_layers) == (1024, 1)
    assert count_parameters(part).total < 2 * MAX_SLICE_PARAMETERS
    deep = sliced(dataclasses.replace(SMALL, dim=256, num_heads=4, num_layers=500))
    assert 1 < deep.num_layers < 500
    assert count_parameters(deep).total <= MAX_SLICE_PARAMETERS
