"""Every precision, and every way to checkpoint activations, under every strategy: it works, or is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lmstack.models.checkpoint_folder import newest_valid_checkpoint
from lmstack.optim.master_weights import MASTER
from parallel_runs import result, runs

FAST: dict[str, dict[str, Any]] = {name: {"strategy": name} for name in ("ddp", "fsdp2", "tp", "pipeline")}
CHOICES: dict[str, dict[str, Any] | None] = {
    "none": None,
    "full": {"kind": "full"},
    "blocks": {"kind": "blocks", "every": 2},
    "matmuls": {"kind": "matmuls"},
}
PRECISIONS: dict[str, dict[str, Any]] = {
    "32-true": {"precision": "32-true"},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-true": {"precision": "bf16-true"},
    "masters": {"precision": "bf16-true", "optimizer": "adamw_masters"},
}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", FAST)
def test_checkpointed_activations_change_no_bit_under_any_strategy(tmp_path: Path, strategy: str) -> None:
    """With dropout, of which the same is dropped again."""
    common = {"strategy": strategy, "steps": 2, "clip": 0.5, "shape_changes": {"dropout": 0.1}}
    runs(tmp_path, 2, {name: common | {"activation_checkpointing": choice} for name, choice in CHOICES.items()})
    wanted = result(tmp_path / "none")
    for name in CHOICES:
        got = result(tmp_path / name)
        assert got["losses"] == wanted["losses"]
        assert got["norms"] == wanted["norms"]
        assert all(torch.equal(got["weights"][key], weight) for key, weight in wanted["weights"].items())


@pytest.mark.slow
@pytest.mark.parametrize("name", PRECISIONS)
def test_every_precision_takes_the_steps_of_one_process_under_every_strategy(tmp_path: Path, name: str) -> None:
    common = PRECISIONS[name] | {"steps": 3, "clip": 0.5}
    runs(tmp_path, 1, {"single": {"strategy": "single"} | common})
    strategies = FAST if name == "masters" else FAST | {"local_sgd": {"strategy": "local_sgd"}}
    runs(tmp_path, 2, {strategy: spec | common for strategy, spec in strategies.items()})
    wanted = result(tmp_path / "single")
    # bfloat16 has 8 bits: weights of up to 0.5 and three steps of 1e-3 differ by a few of its units
    tolerance = 1e-5 if name == "32-true" else 2e-2
    for strategy in FAST:
        got = result(tmp_path / strategy)
        assert got["losses"] == pytest.approx(wanted["losses"], rel=tolerance)
        for key, weight in wanted["weights"].items():
            assert got["weights"][key].dtype == weight.dtype
            torch.testing.assert_close(got["weights"][key], weight, rtol=tolerance, atol=tolerance / 2)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["single", *FAST])
def test_copies_of_weights_are_in_the_checkpoint_and_the_run_goes_on_exactly(tmp_path: Path, strategy: str) -> None:
    world_size = 1 if strategy == "single" else 2
    common = PRECISIONS["masters"] | {"strategy": strategy, "planned_steps": 4, "clip": 0.5}
    runs(tmp_path, world_size, {"whole": common | {"steps": 4}, "part": common | {"steps": 2}})
    checkpoint = str(newest_valid_checkpoint(tmp_path / "part"))
    runs(tmp_path, world_size, {"rest": common | {"steps": 4, "resume": checkpoint, "seed": 77}})
    whole, rest = result(tmp_path / "whole"), result(tmp_path / "rest")
    assert rest["losses"] == whole["losses"][2:]
    assert all(torch.equal(rest["weights"][name], weight) for name, weight in whole["weights"].items())
    for number, entry in whole["optimizer"]["state"].items():
        assert entry[MASTER].dtype == torch.float32
        assert torch.equal(rest["optimizer"]["state"][number][MASTER], entry[MASTER])


@pytest.mark.slow
def test_local_sgd_refuses_copies_of_weights(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="an exchange would change weights and not their"):
        runs(tmp_path, 2, {"local_sgd": PRECISIONS["masters"] | {"strategy": "local_sgd", "steps": 1}})


@pytest.mark.slow
def test_copies_of_float32_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="master_weights=true with weights in float32"):
        runs(tmp_path, 1, {"mixed": {"strategy": "single", "optimizer": "adamw_masters", "steps": 1}})
