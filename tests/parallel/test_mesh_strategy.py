from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from lmstack.nn.lora import LoRAConfig
from lmstack.parallel.layout import Layout
from lmstack.parallel.mesh_strategy import MeshStrategy
from tiny_run import tiny_stage


def strategy_for(module: nn.Module, precision: str = "32-true") -> MeshStrategy:
    strategy = MeshStrategy(shards="auto")
    module._trainer = SimpleNamespace(precision=precision)
    strategy._lightning_module = module
    return strategy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sequence_parallel": True}, r"sequence_parallel=true has no effect with tensor=1"),
        ({"sequence_parallel": True, "tensor": 2, "pipeline": 2}, r"sequence_parallel with a pipeline"),
        ({"stages_per_process": 2, "pipeline": 2}, r"stages_per_process=2 with schedule=1f1b"),
        ({"schedule": "interleaved_1f1b", "pipeline": 2}, r"stages_per_process=1 with schedule=interleaved_1f1b"),
    ],
)
def test_settings_without_effect_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeshStrategy(**arguments)


def test_a_stage_with_one_transformer_may_be_cut() -> None:
    strategy_for(tiny_stage())._check_module()


def test_stages_that_cannot_be_cut_are_refused_with_the_reason() -> None:
    stage = tiny_stage()
    stage.score_head = nn.Linear(16, 1)
    with pytest.raises(ValueError, match=r"CausalLM trains score_head.weight, which is outside the transformer"):
        strategy_for(stage)._check_module()
    stage = tiny_stage()
    stage.reference = tiny_stage().transformer
    with pytest.raises(ValueError, match=r"CausalLM has 2 transformers"):
        strategy_for(stage)._check_module()
    stage = tiny_stage()
    stage.automatic_optimization = False
    with pytest.raises(ValueError, match=r"CausalLM samples from the model it trains"):
        strategy_for(stage)._check_module()
    stage = tiny_stage()
    stage.lora = LoRAConfig(rank=2, alpha=4.0)
    with pytest.raises(ValueError, match=r"model.lora: adapters fit on one device"):
        strategy_for(stage)._check_module()
    with pytest.raises(ValueError, match=r"trainer.precision=16-mixed with this strategy: use 32-true"):
        strategy_for(tiny_stage(), precision="16-mixed")._check_module()


def test_processes_of_a_tensor_or_pipeline_dimension_share_their_data(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = MeshStrategy()
    strategy.layout = Layout(pipeline=2, replicas=1, shards=2, tensor=2)
    places = []
    for rank in range(8):
        monkeypatch.setattr(MeshStrategy, "global_rank", rank)
        places.append((strategy.distributed_sampler_kwargs["rank"], strategy.random_rank))
        assert strategy.distributed_sampler_kwargs["num_replicas"] == 2
    # Parts of a layer draw the same random numbers; other layers and other data other ones.
    assert places == [(0, 0), (0, 0), (1, 1), (1, 1), (0, 2), (0, 2), (1, 3), (1, 3)]
