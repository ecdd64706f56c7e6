"""Each process writes its part of a checkpoint; any number of processes, under any strategy, goes on from it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lmstack.callbacks import Checkpointing
from lmstack.models.checkpoint import load_transformer
from lmstack.models.checkpoint_folder import DamagedCheckpointError, newest_valid_checkpoint, read_manifest
from parallel_runs import DEEPSPEED, assert_alike, result, runs
from tiny_run import tiny_stage, tiny_trainer

COMMON: dict[str, Any] = {"planned_steps": 4, "clip": 0.5}
REST: dict[str, Any] = COMMON | {"steps": 4, "seed": 77}


def checkpoint_of(folder: Path) -> Path:
    return folder / "checkpoints" / "step-00000002"


def from_step_2(folder: Path) -> dict[str, Any]:
    whole = result(folder)
    return whole | {"losses": whole["losses"][2:], "norms": whole["norms"][2:]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    saving = {"strategy": "fsdp2", "sharded": True, "steps": 2} | COMMON
    resumed = {"strategy": "tp", "resume": str(checkpoint_of(folder / "saved"))} | REST
    runs(folder, 2, {"saved": saving, "tp": resumed})
    single = {"strategy": "single"}
    whole = single | COMMON | {"steps": 4}
    runs(folder, 1, {"whole": whole, "single": single | {"resume": resumed["resume"]} | REST})
    return folder


@pytest.mark.parametrize("target", ["tp", "single"])
def test_the_run_goes_on_elsewhere(saved: Path, target: str) -> None:
    assert_alike(result(saved / target), from_step_2(saved / "whole"), tolerance=1e-5)


def test_every_process_writes_a_file_that_the_manifest_knows(saved: Path) -> None:
    checkpoint = checkpoint_of(saved / "saved")
    names = read_manifest(checkpoint)["files"]
    assert sorted(name for name in names if name.startswith("shards/")) == [
        f"shards/shard-0000{number}-model-00001-of-00001.safetensors" for number in (1, 2)
    ]
    sizes = [entry["bytes"] for name, entry in names.items() if name.startswith("shards/")]
    assert max(sizes) < 0.6 * sum(sizes)
    assert "model.safetensors" not in names


def test_a_shard_that_was_altered_is_named(saved: Path) -> None:
    file = next((checkpoint_of(saved / "saved") / "shards").glob("shard-00002-*"))
    content = file.read_bytes()
    try:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(DamagedCheckpointError, match=r"shards/shard-00002.* does not match its SHA-256"):
            read_manifest(checkpoint_of(saved / "saved"))
    finally:
        file.write_bytes(content)


def test_tools_read_the_weights(saved: Path) -> None:
    state = load_transformer(saved / "saved").state_dict()
    assert set(state) == {name.removeprefix("transformer.") for name in result(saved / "whole")["initial"]}
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert float(state["embedding.weight"].std()) == pytest.approx(0.1, rel=0.1)  # drawn so, two steps ago


def test_what_waits_for_others_is_not_done_in_the_background() -> None:
    with pytest.raises(ValueError, match=r"Set asynchronous=false, or sharded=false"):
        Checkpointing(asynchronous=True, sharded=True)


def test_strategies_that_do_not_cut_the_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sharded=true: SingleDeviceStrategy does not cut the model over a mesh"):
        Checkpointing(sharded=True).setup(tiny_trainer(tmp_path), tiny_stage(), "fit")


@pytest.mark.slow
def test_every_strategy_goes_on_from_the_shards_of_every_mesh(tmp_path: Path) -> None:
    origins = {
        2: {"tp": {"strategy": "tp"}, "pipeline": {"strategy": "pipeline"}, "fsdp2": {"strategy": "fsdp2"}},
        4: {
            "tp_fsdp2": {"strategy": "tp_fsdp2"},
            "pipeline_fsdp2": {"strategy": "pipeline", "changes": {"pipeline": 2, "shards": 2}},
            "hybrid": {"strategy": "fsdp2", "changes": {"replicas": 2}},
        },
    }
    targets: dict[int, dict[str, dict[str, Any]]] = {
        1: {"single": {"strategy": "single"}},
        2: {"ddp": {"strategy": "ddp"}, **origins[2], **DEEPSPEED},
        4: origins[4],
    }
    runs(tmp_path, 1, {"whole": {"strategy": "single", "steps": 4} | COMMON})
    for size, specs in origins.items():
        saving = {"sharded": True, "steps": 2} | COMMON
        runs(tmp_path, size, {f"from_{name}": spec | saving for name, spec in specs.items()})
    found = {name: str(newest_valid_checkpoint(tmp_path / f"from_{name}")) for s in origins.values() for name in s}
    for size, specs in targets.items():
        resumed = {
            f"{origin}_to_{name}": spec | {"resume": checkpoint} | REST
            for name, spec in specs.items()
            for origin, checkpoint in found.items()
        }
        runs(tmp_path, size, resumed)
        for name in resumed:
            assert_alike(result(tmp_path / name), from_step_2(tmp_path / "whole"), tolerance=1e-5)


@pytest.mark.slow
def test_a_run_that_writes_shards_goes_on_from_them_bit_for_bit(tmp_path: Path) -> None:
    common: dict[str, Any] = {"strategy": "fsdp2", "sharded": True} | COMMON
    runs(tmp_path, 2, {"whole": common | {"steps": 4}, "part": common | {"steps": 2}})
    resume = str(checkpoint_of(tmp_path / "part"))
    runs(tmp_path, 2, {"rest": common | REST | {"resume": resume, "deferred": True}})
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    losses = [torch.load(folder / "result.pt", weights_only=True)["losses"] for folder in (whole, rest)]
    assert losses[1] == losses[0][2:]
    states = [load_transformer(folder).state_dict() for folder in (whole, rest)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
