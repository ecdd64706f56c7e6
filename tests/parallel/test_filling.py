"""A model without weights is cut, and gets the values of one process, part by part."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lmstack.parallel.filling import fill
from parallel_runs import assert_alike, result, runs

MEMORY = Path(__file__).parents[1] / "recipes" / "memory_of_initialization.py"
COMMON: dict[str, Any] = {"steps": 2, "clip": 0.5}
DEFERRED = COMMON | {"deferred": True}


def assert_same_start(got: Path, wanted: Path) -> None:
    own, reference = result(got)["initial"], result(wanted)["initial"]
    assert list(own) == list(reference)
    assert all(torch.equal(own[name], tensor) for name, tensor in reference.items())


def test_cut_models_start_bit_for_bit_where_one_process_does(tmp_path: Path) -> None:
    specs = {name: {"strategy": name} | DEFERRED for name in ("fsdp2", "tp", "pipeline")}
    runs(tmp_path, 1, {"single": {"strategy": "single"} | COMMON})
    runs(tmp_path, 2, specs)
    for name in specs:
        assert_same_start(tmp_path / name, tmp_path / "single")
        assert_alike(result(tmp_path / name), result(tmp_path / "single"), tolerance=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["llama", "untied", "gpt2"])
def test_products_of_strategies_start_there_too(tmp_path: Path, shape: str) -> None:
    specs: dict[str, dict[str, Any]] = {
        "fsdp2_hybrid": {"strategy": "fsdp2", "changes": {"replicas": 2}},
        "tp_fsdp2": {"strategy": "tp_fsdp2"},
        "ptdp": {"strategy": "ptdp"},
        "pipeline_fsdp2": {"strategy": "pipeline", "changes": {"pipeline": 2, "shards": 2}},
    }
    runs(tmp_path, 1, {"single": {"strategy": "single", "shape": shape} | COMMON})
    runs(tmp_path, 4, {name: spec | {"shape": shape} | DEFERRED for name, spec in specs.items()})
    for name in specs:
        assert_same_start(tmp_path / name, tmp_path / "single")


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the kernel does not say how large a process was"
)
def test_no_process_ever_has_room_for_the_whole_model(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", MEMORY, tmp_path],
            env=environment | {"NODE_RANK": "0", "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    report = json.loads(outputs[0].splitlines()[-1])
    assert report["whole"] > 0.9 * report["model"]
    assert report["deferred"] < 0.8 * report["model"]  # 0.62 here: a half, and one matrix on its way


def test_weights_of_another_model_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'bias' is missing \(1 in all\)"):
        fill(nn.Linear(2, 2), [("weight", torch.zeros(2, 2))])
