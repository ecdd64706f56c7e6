"""Every strategy takes the steps of one process, and goes on from the checkpoints of every other."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lmstack.models.checkpoint_folder import newest_valid_checkpoint
from parallel_runs import DEEPSPEED, assert_alike, result, runs

ADAMW = {"steps": 3, "clip": 0.5}
SGD = {"steps": 3, "optimizer": "sgd"}
AVERAGING = {"period": 1, "outer_lr": 1.0, "outer_momentum": 0.0}
FAST: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "fsdp2": {"strategy": "fsdp2"},
    "tp": {"strategy": "tp"},
    "pipeline": {"strategy": "pipeline"},
}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    local = {"strategy": "local_sgd", "changes": AVERAGING} | SGD
    untied = {"shape": "untied"} | ADAMW
    alone = {"single": ADAMW, "single_sgd": SGD, "single_untied": untied}
    runs(folder, 1, {name: {"strategy": "single"} | spec for name, spec in alone.items()})
    others = {"local_sgd": local, "pipeline_untied": {"strategy": "pipeline"} | untied}
    runs(folder, 2, {name: spec | ADAMW for name, spec in FAST.items()} | others)
    return folder


@pytest.mark.parametrize("name", FAST)
def test_two_processes_take_the_steps_of_one(two_processes: Path, name: str) -> None:
    assert_alike(result(two_processes / name), result(two_processes / "single"), tolerance=1e-5)


def test_a_pipeline_s_norm_counts_all_stages_also_where_the_last_has_no_embedding(two_processes: Path) -> None:
    got, wanted = result(two_processes / "pipeline_untied"), result(two_processes / "single_untied")
    assert_alike(got, wanted, tolerance=1e-5)


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
    places = {1: {"single": {"strategy": "single"}}, 2: FAST | DEEPSPEED}
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
