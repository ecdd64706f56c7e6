"""Every strategy takes the steps of one process, and goes on from the checkpoints of every other."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lmstack.models.checkpoint_folder import newest_valid_checkpoint

SCRIPT = Path(__file__).parents[1] / "recipes" / "strategy_runs.py"
ADAMW = {"steps": 3, "clip": 0.5}
SGD = {"steps": 3, "optimizer": "sgd"}
AVERAGING = {"period": 1, "outer_lr": 1.0, "outer_momentum": 0.0}
FAST: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "fsdp2": {"strategy": "fsdp2"},
    "tp": {"strategy": "tp"},
    "pipeline": {"strategy": "pipeline"},
}


def runs(folder: Path, world_size: int, specs: dict[str, dict[str, Any]]) -> None:
    """Each run in a folder of its name; all in the same processes."""
    file = folder / f"runs-{world_size}-{'-'.join(specs)[:80]}.json"
    file.write_text(json.dumps([{"folder": str(folder / name)} | spec for name, spec in specs.items()]))
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPT, file, str(world_size)],
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


def result(folder: Path) -> dict[str, Any]:
    checkpoint = newest_valid_checkpoint(folder)
    assert checkpoint is not None
    state = torch.load(checkpoint / "training_state.pt", weights_only=True)
    found: dict[str, Any] = torch.load(folder / "result.pt", weights_only=True)
    return found | {"weights": load_file(checkpoint / "model.safetensors"), "optimizer": state["optimizer_states"][0]}


def assert_alike(got: dict[str, Any], wanted: dict[str, Any], *, tolerance: float, norms: bool = True) -> None:
    assert got["losses"] == pytest.approx(wanted["losses"], abs=tolerance)
    if norms:
        assert got["norms"] == pytest.approx(wanted["norms"], rel=tolerance)
    assert got["val"] == pytest.approx(wanted["val"], rel=tolerance)
    assert list(got["weights"]) == list(wanted["weights"])
    for name, weight in wanted["weights"].items():
        torch.testing.assert_close(got["weights"][name], weight, rtol=0, atol=tolerance, msg=name)
    groups = [[group["params"] for group in each["optimizer"]["param_groups"]] for each in (got, wanted)]
    assert groups[0] == groups[1]
    for number, entry in wanted["optimizer"]["state"].items() if norms else ():
        for key, value in entry.items():
            torch.testing.assert_close(got["optimizer"]["state"][number][key], value, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    local = {"strategy": "local_sgd", "changes": AVERAGING} | SGD
    runs(folder, 1, {"single": {"strategy": "single"} | ADAMW, "single_sgd": {"strategy": "single"} | SGD})
    runs(folder, 2, {name: spec | ADAMW for name, spec in FAST.items()} | {"local_sgd": local})
    return folder


@pytest.mark.parametrize("name", FAST)
def test_two_processes_take_the_steps_of_one(two_processes: Path, name: str) -> None:
    assert_alike(result(two_processes / name), result(two_processes / "single"), tolerance=1e-5)


def test_local_sgd_that_averages_after_every_step_of_sgd_is_data_parallel_training(two_processes: Path) -> None:
    # A process's own gradient has another norm than that of all.
    got, wanted = result(two_processes / "local_sgd"), result(two_processes / "single_sgd")
    assert_alike(got, wanted, tolerance=1e-5, norms=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "specs"),
    [
        (
            2,
            {
                "fsdp2": {"strategy": "fsdp2"},
                "tp": {"strategy": "tp"},
                "sequence_parallel": {"strategy": "tp", "changes": {"sequence_parallel": True}},
                "pipeline": {"strategy": "pipeline", "changes": {"schedule": "gpipe"}},
            },
        ),
        (
            4,
            {
                "fsdp2_hybrid": {"strategy": "fsdp2", "changes": {"replicas": 2}},
                "tp_fsdp2": {"strategy": "tp_fsdp2"},
                "sequence_parallel_fsdp2": {"strategy": "tp_fsdp2", "changes": {"sequence_parallel": True}},
                "ptdp": {"strategy": "ptdp"},
                "pipeline_fsdp2": {"strategy": "pipeline", "changes": {"pipeline": 2, "shards": 2}},
            },
        ),
    ],
    ids=["2 processes", "4 processes"],
)
@pytest.mark.parametrize("shape", ["llama", "untied", "gpt2"])
def test_in_float64_only_the_norm_that_clips_is_rounded(
    tmp_path: Path, world_size: int, specs: dict[str, dict[str, Any]], shape: str
) -> None:
    """Other than float32, float64 does not let a small mistake hide in rounding: the limit is that of the norm's."""
    common = {"steps": 3, "shape": shape, "precision": "64-true", "clip": 0.5, "stage": {"z_loss_coef": 0.1}}
    runs(tmp_path, 1, {"single": {"strategy": "single"} | common})
    runs(tmp_path, world_size, {name: spec | common for name, spec in specs.items()})
    for name in specs:
        assert_alike(result(tmp_path / name), result(tmp_path / "single"), tolerance=1e-6)


@pytest.mark.slow
def test_every_strategy_goes_on_from_the_checkpoints_of_every_other(tmp_path: Path) -> None:
    """Two steps, then two more elsewhere: the four steps of one process."""
    common = {"planned_steps": 4, "clip": 0.5}
    places = {1: {"single": {"strategy": "single"}}, 2: FAST}
    runs(tmp_path, 1, {"whole": {"strategy": "single", "steps": 4} | common})
    for world_size, specs in places.items():
        runs(tmp_path, world_size, {f"from_{n}": spec | {"steps": 2} | common for n, spec in specs.items()})
    saved = {n: str(newest_valid_checkpoint(tmp_path / f"from_{n}")) for specs in places.values() for n in specs}
    for world_size, specs in places.items():
        resumed = {
            f"{origin}_to_{n}": spec | {"steps": 4, "resume": checkpoint, "seed": 77} | common
            for n, spec in specs.items()
            for origin, checkpoint in saved.items()
        }
        runs(tmp_path, world_size, resumed)
    whole = result(tmp_path / "whole")
    whole |= {"losses": whole["losses"][2:], "norms": whole["norms"][2:]}
    for target in saved:
        for origin in saved:
            assert_alike(result(tmp_path / f"{origin}_to_{target}"), whole, tolerance=1e-5)


@pytest.mark.slow
def test_local_sgd_goes_on_exactly_between_two_exchanges(tmp_path: Path) -> None:
    common = {"strategy": "local_sgd", "changes": {"period": 3}, "planned_steps": 5}
    runs(tmp_path, 2, {"whole": common | {"steps": 5}, "part": common | {"steps": 2}})
    checkpoint = str(newest_valid_checkpoint(tmp_path / "part"))
    runs(tmp_path, 2, {"rest": common | {"steps": 5, "resume": checkpoint, "seed": 77}})
    whole, rest = result(tmp_path / "whole"), result(tmp_path / "rest")
    assert rest["losses"] == whole["losses"][2:]
    assert all(torch.equal(rest["weights"][name], weight) for name, weight in whole["weights"].items())
