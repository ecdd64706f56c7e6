import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmstack.cli.failures import ConfigError
from lmstack.cli.strategy_choice import resolve_strategy

RUN = """
defaults: [_self_, {model: byte_tiny}, {optim: adamw}, {schedule: constant}, {strategy: null}, {precision: null}]
stage: causal_lm
data: {path: corpus, sequence_length: 32, micro_batch_size: 2, global_batch_size: 64}
trainer: {max_steps: 100, accelerator: cpu, precision: 32-true, default_root_dir: runs/x}
"""
PLAN = ("plan", "--config", "conf/real.yaml")


@pytest.fixture(autouse=True)
def _a_real_config(project: Path) -> None:
    Path("conf/real.yaml").write_text(RUN)
    Path("corpus").mkdir()
    Path("corpus/manifest.json").write_text(json.dumps({"tokenizer": {"vocab_size": 300}}))


def config(lmstack: Any, *overrides: str) -> dict[str, Any]:
    printed: dict[str, Any] = yaml.safe_load(lmstack("config", "--config", "conf/real.yaml", *overrides).out)
    return printed


def resolved(lmstack: Any, *overrides: str, checkpoint: Path | None = None) -> dict[str, Any]:
    found = config(lmstack, *overrides)
    resolve_strategy(found, checkpoint)
    trainer: dict[str, Any] = found["trainer"]
    return trainer


def test_a_plan_on_a_cluster_lists_every_strategy_and_takes_one(lmstack: Any) -> None:
    said = lmstack(*PLAN, "cluster=8xh100").out
    for strategy in ("single", "ddp", "fsdp2", "tp_fsdp2", "ptdp", "deepspeed_zero3", "local_sgd"):
        assert strategy in said
    assert "Take strategy=ddp: fits, and is within 3% of the fastest." in said
    assert "8 x h100: 74.5 GiB" in said


def test_a_plan_knows_what_is_computed_again_and_in_which_precision(lmstack: Any) -> None:
    def total(*overrides: str) -> float:
        lines = lmstack(*PLAN, "cluster=1xh100", *overrides).out.splitlines()
        return float(next(line for line in lines if line.startswith("single")).split()[2])

    assert total("model.activation_checkpointing.kind=full", "data.micro_batch_size=64") < 0.8 * total(
        "data.micro_batch_size=64"
    )
    assert total("precision=bf16_true") < total("precision=bf16_masters") < total()


@pytest.mark.parametrize("words", [("cluster=8xmagic",), ("cluster=8xh100", "--devices", "2")])
def test_a_wrong_cluster_is_told_in_a_line(lmstack: Any, words: tuple[str, ...]) -> None:
    result = lmstack(*PLAN, *words)
    assert result.status == 2
    assert "cluster" in result.err


def test_auto_takes_what_is_recommended_and_says_so(lmstack: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = resolved(lmstack, "strategy=auto", "cluster=2x8xh100")
    assert (trainer["strategy"], trainer["devices"], trainer["num_nodes"]) == ("ddp", 8, 2)
    assert "strategy=auto: strategy=ddp on 2x8xh100: fits" in capsys.readouterr().err
    assert (
        resolved(lmstack, "strategy=auto", "trainer.devices=1")["strategy"] == "auto"
    )  # one device, in Lightning's words


def test_auto_cuts_a_model_that_does_not_fit(lmstack: Any) -> None:
    large = ("model=llama3_8b", "data.global_batch_size=256", "data.sequence_length=2048", "data.micro_batch_size=1")
    trainer = resolved(lmstack, "strategy=auto", "cluster=8xb200", "precision=bf16_mixed", *large)
    assert trainer["strategy"]["class_path"] == "lmstack.parallel.mesh_strategy.MeshStrategy"
    with pytest.raises(ConfigError, match="strategy=auto on 1xl40s: nothing fits: even single needs"):
        resolved(lmstack, "strategy=auto", "cluster=1xl40s", *large)


def test_a_run_that_goes_on_with_as_many_devices_keeps_its_strategy_and_says_so(
    lmstack: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs/x").mkdir(parents=True)
    kept = {"strategy": {"class_path": "lmstack.parallel.mesh_strategy.MeshStrategy", "shards": "auto"}, "devices": 2}
    Path("runs/x/config.yaml").write_text(yaml.safe_dump({"trainer": kept}))
    for devices, wanted, said in ((2, kept["strategy"], "as the run began"), (4, "ddp", "strategy=ddp on 4xcpu: ")):
        trainer = resolved(
            lmstack, "strategy=auto", f"trainer.devices={devices}", checkpoint=Path("runs/x/checkpoints")
        )
        assert trainer["strategy"] == wanted
        assert f"strategy=auto: {said}" in capsys.readouterr().err


def test_stages_that_need_the_whole_model_everywhere_get_it(lmstack: Any) -> None:
    found = config(lmstack, "strategy=auto", "trainer.devices=2") | {"stage": "grpo"}
    resolve_strategy(found, None)
    assert found["trainer"]["strategy"] == "ddp"


def test_a_cluster_without_auto_has_no_effect_and_is_refused(lmstack: Any) -> None:
    with pytest.raises(ConfigError, match="it is for strategy=auto"):
        resolved(lmstack, "cluster=8xh100")


def test_what_is_named_is_left_alone(lmstack: Any) -> None:
    before = config(lmstack, "strategy=fsdp2")["trainer"]
    assert resolved(lmstack, "strategy=fsdp2") == before
