import dataclasses

import pytest

from lmstack.models.accounting import count_parameters, flops_per_token
from lmstack.models.config import DenseConfig, GaussianInit, RotaryConfig, TransformerConfig
from lmstack.planning import RunPlan, Speed, plan_run

CONFIG = TransformerConfig(
    vocab_size=100,
    max_seq_len=32,
    dim=16,
    num_layers=3,
    num_heads=2,
    positions=RotaryConfig(),
    feed_forward=DenseConfig(hidden_dim=40),
    initialization=GaussianInit(),
)


def plan(**changes: object) -> RunPlan:
    arguments = {
        "num_steps": 10,
        "num_tokens": 10 * 8 * 32,
        "sequence_length": 32,
        "micro_batch_size": 4,
        "global_batch_size": 8,
    }
    return plan_run(CONFIG, **(arguments | changes))  # type: ignore[arg-type]


def test_compute_is_tokens_times_the_causal_count_of_a_token() -> None:
    assert plan().total_flops == 2560 * flops_per_token(CONFIG, 32, "causal_attention")
    assert plan().parameters == count_parameters(CONFIG)


def test_time_is_compute_over_the_speed_of_all_devices() -> None:
    one, two = plan(speed=Speed(1e9, "given")), plan(speed=Speed(1e9, "given"), world_size=2)
    assert one.seconds == pytest.approx(one.total_flops / 1e9)
    assert two.seconds == pytest.approx(one.total_flops / 2e9)
    assert plan().seconds is None


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(ValueError, match="global_batch_size=8 is not a multiple of micro_batch_size=4 x 3 devices"):
        plan(world_size=3)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trainer.precision='bf17': must be one of 32, "):
        plan(precision="bf17")


def test_half_the_bytes_take_half_the_memory_for_weights() -> None:
    assert plan(precision="bf16-true").memory.parameters * 2 == plan(precision="32-true").memory.parameters


def test_muon_keeps_less_state_than_adamw() -> None:
    assert plan(optimizer="muon").memory.optimizer < plan(optimizer="adamw").memory.optimizer


def test_a_plan_is_a_value() -> None:
    assert dataclasses.replace(plan(), num_steps=10) == plan()
