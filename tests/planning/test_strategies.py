"""Strategies on clusters: the published formulas, by hand, and what is recommended when."""

import dataclasses
from typing import Any

import pytest

from lmstack.models.accounting import count_parameters
from lmstack.models.activation_checkpointing import FullCheckpointing
from lmstack.models.config import DenseConfig, GaussianInit, RotaryConfig, TransformerConfig
from lmstack.parallel.layout import Layout
from lmstack.planning.arrangement import STRATEGIES, Arrangement, arrangements, why_not
from lmstack.planning.cluster import Cluster, parse_cluster
from lmstack.planning.communication import traffic
from lmstack.planning.device_memory import DEEPSPEED_BUCKET, device_memory, weights_of_stage
from lmstack.planning.strategies import NEVER_RECOMMENDED, StrategyPlan, choose_strategy
from lmstack.planning.workload import Workload

SHAPE = TransformerConfig(
    vocab_size=1024,
    max_seq_len=128,
    dim=64,
    num_layers=8,
    num_heads=8,
    num_kv_heads=4,
    positions=RotaryConfig(),
    feed_forward=DenseConfig(hidden_dim=192),
    initialization=GaussianInit(),
    tied_embeddings=False,
)
LARGE = dataclasses.replace(
    SHAPE,
    vocab_size=128_256,
    dim=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    feed_forward=DenseConfig(hidden_dim=14_336),
)
WORK = Workload(SHAPE, 128, 2, 64, "32-true", "adamw")
LARGE_WORK = Workload(LARGE, 4096, 1, 512, "bf16-mixed", "adamw")
TOTAL = count_parameters(SHAPE).total


def arrangement(strategy: str, **sizes: int) -> Arrangement:
    return Arrangement(strategy, Layout(**sizes))


def sent(strategy: str, cluster: str = "4xh100", work: Workload = WORK, **sizes: int) -> dict[str, float]:
    return {each.what: each.bytes for each in traffic(work, arrangement(strategy, **sizes), parse_cluster(cluster))}


def test_weights_gradients_and_state_of_adamw_are_16_bytes_a_weight_on_one_device() -> None:
    memory = device_memory(WORK, arrangement("single"))
    assert (memory.parameters, memory.gradients, memory.optimizer) == (4 * TOTAL, 4 * TOTAL, 8 * TOTAL)


@pytest.mark.parametrize(("stage", "shared"), [(1, (1, 1, 4)), (2, (1, 4, 4)), (3, (4, 4, 4))])
def test_zero_shares_out_state_then_gradients_then_weights(stage: int, shared: tuple[int, int, int]) -> None:
    """ZeRO, arXiv:1910.02054, figure 1, with float32 weights and gradients: 4, 4 and K = 12 bytes a weight."""
    memory = device_memory(WORK, arrangement(f"deepspeed_zero{stage}", shards=4))
    bucket = 4 * min(TOTAL, DEEPSPEED_BUCKET)
    assert memory.parameters == pytest.approx(4 * TOTAL / shared[0] + bucket)
    assert memory.gradients == pytest.approx(4 * TOTAL / shared[1] + bucket)
    assert memory.optimizer == pytest.approx(12 * TOTAL / shared[2])


def test_data_parallel_devices_send_two_times_the_gradients_in_a_ring() -> None:
    assert sent("ddp", replicas=4) == {"gradients": 2 * 3 / 4 * 4 * TOTAL}


def test_sharded_devices_send_three_times_the_weights_for_each_micro_batch() -> None:
    """arXiv:1910.02054, section 7.2.2: 3 Ψ; 64 rows over 4 devices are 8 micro-batches of 2."""
    assert sent("fsdp2", shards=4) == {"weights and gradients": pytest.approx(8 * 3 * 3 / 4 * 4 * TOTAL)}
    assert sent("deepspeed_zero1", shards=4) == {"weights and gradients": pytest.approx(2 * 3 / 4 * 4 * TOTAL)}


def test_tensor_parallel_devices_send_four_all_reduces_a_layer_and_two_at_the_ends() -> None:
    """Megatron, arXiv:2104.04473, section 3.2: 8 b s h (t - 1) / t numbers a layer and micro-batch."""
    (amount,) = sent("tp", tensor=4).values()
    a_layer = 8 * 2 * 128 * 64 * 3 / 4 * 4
    assert amount == pytest.approx(32 * (8 * a_layer + a_layer / 2))


def test_stages_of_a_pipeline_send_activations_there_and_back() -> None:
    assert sent("pipeline", pipeline=4) == {"activations of neighbours": 32 * 2 * (2 * 128 * 64 * 4)}


def test_local_sgd_sends_weights_once_in_its_period() -> None:
    assert sum(sent("local_sgd", replicas=4).values()) == pytest.approx(2 * 3 / 4 * 4 * TOTAL / 50)


def test_every_weight_is_somewhere_and_a_tied_matrix_at_both_ends() -> None:
    cut = arrangement("pipeline", pipeline=4)
    assert sum(sum(weights_of_stage(WORK, cut, stage)) for stage in range(4)) == TOTAL
    tied = dataclasses.replace(WORK, transformer=dataclasses.replace(SHAPE, tied_embeddings=True))
    twice = sum(sum(weights_of_stage(tied, cut, stage)) for stage in range(4))
    assert twice == count_parameters(tied.transformer).total + 1024 * 64


def test_the_first_stage_keeps_as_many_micro_batches_as_there_are_stages() -> None:
    """1F1B, arXiv:2104.04473, section 2.2.1: a quarter of the layers, four times."""
    one, four = (device_memory(WORK, arrangement("pipeline", pipeline=p)).activations for p in (1, 4))
    assert four == pytest.approx(one, rel=0.03)


def test_a_pipeline_waits_for_its_stages_over_its_micro_batches() -> None:
    plan = choose_strategy(WORK, parse_cluster("4xh100")).plans["pipeline"]
    assert isinstance(plan, StrategyPlan)
    assert plan.bubble == 3 / 32


def test_checkpointing_takes_less_memory_and_a_third_more_compute() -> None:
    again = dataclasses.replace(WORK, activation_checkpointing=FullCheckpointing())
    assert again.flops == pytest.approx(WORK.flops * 4 / 3)
    one, other = (device_memory(work, arrangement("single")).activations for work in (again, WORK))
    assert one < 0.3 * other


def test_a_ring_of_several_devices_a_node_shares_their_networks() -> None:
    cluster = parse_cluster("2x8xh100")
    device = cluster.device
    assert cluster.bandwidth(1, 8) == ("node", device.node_bytes_per_second)
    assert cluster.bandwidth(8, 2) == ("network", device.network_bytes_per_second)
    assert cluster.bandwidth(2, 8) == ("network", 4 * device.network_bytes_per_second)


def test_a_small_model_is_copied_and_a_large_one_cut() -> None:
    assert taken(WORK, "8xh100") == "ddp"
    assert taken(WORK, "1xh100") == "single"
    assert taken(LARGE_WORK, "8xb200") == "fsdp2"
    assert taken(LARGE_WORK, "8xa100_40gb") != "fsdp2"


def taken(work: Workload, cluster: str) -> str:
    choice = choose_strategy(work, parse_cluster(cluster))
    assert choice.recommended is not None
    assert choice.recommended.arrangement.strategy not in NEVER_RECOMMENDED
    return choice.recommended.arrangement.strategy


def test_what_does_not_fit_is_not_recommended_and_the_reason_names_it() -> None:
    choice = choose_strategy(LARGE_WORK, parse_cluster("8xa100_80gb"))
    assert choice.recommended is not None
    assert choice.recommended.fits
    assert "single, ddp" in choice.reason
    nothing = choose_strategy(LARGE_WORK, parse_cluster("1xl40s"))
    assert nothing.recommended is None
    assert nothing.reason.startswith("nothing fits: even single needs")


def test_a_refused_strategy_is_not_planned() -> None:
    choice = choose_strategy(WORK, parse_cluster("8xh100"), refusals={"ddp": "no"})
    assert choice.plans["ddp"] == "no"
    assert choice.recommended is not None
    assert choice.recommended.arrangement.strategy != "ddp"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sizes_that_are_planned_make_all_devices_and_go_into_shape_and_batch(strategy: str) -> None:
    for each in arrangements(strategy, 16, WORK):
        assert each.num_devices == (1 if strategy == "single" else 16)
        if why_not(each, WORK, 16) is None:
            assert SHAPE.kv_heads % each.layout.tensor == 0
            assert SHAPE.num_layers >= each.layout.pipeline
            assert WORK.global_batch_size % (WORK.micro_batch_size * each.layout.data_parallel) == 0


def test_more_heads_than_there_are_are_not_shared_out() -> None:
    reason = choose_strategy(WORK, parse_cluster("8xh100")).plans["tp"]
    assert reason == "model.transformer.num_kv_heads=4 is not a multiple of trainer.strategy.tensor=8"


@pytest.mark.parametrize(
    ("text", "wanted"), [("8xh100", ("h100", 8, 1)), ("2x8xa100_80gb", ("a100_80gb", 8, 2)), ("4xcpu", ("cpu", 4, 1))]
)
def test_a_cluster_is_read_from_its_text(text: str, wanted: tuple[str, int, int]) -> None:
    cluster = parse_cluster(text)
    assert (cluster.device.name, cluster.devices_per_node, cluster.num_nodes) == wanted
    assert cluster.text == text


@pytest.mark.parametrize("text", ["8", "h100", "8xmagic", "0xh100", "nowhere.yaml"])
def test_what_is_no_cluster_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"cluster={text}"):
        parse_cluster(text)


def test_other_devices_are_described_in_a_file(tmp_path: Any) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "devices_per_node: 4\nnum_nodes: 2\ndevice: {memory_bytes: 3.2e10, bf16_flops: 1e14, fp32_flops: 2e13, "
        "node_bytes_per_second: 3e10, network_bytes_per_second: 1e9}\n"
    )
    cluster = parse_cluster(str(file))
    assert (cluster.num_devices, cluster.device.name, cluster.device.memory_bytes) == (8, "mine", 3.2e10)
    file.write_text("devices_per_node: 2\ndevice: h100\n")
    assert parse_cluster(str(file)) == Cluster(parse_cluster("1xh100").device, 2)
