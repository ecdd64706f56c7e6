"""A spike, a skipped update and a rollback leave a model that is cut as they leave a whole one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lmstack.callbacks.metrics_csv import read_metrics
from lmstack.models.checkpoint_folder import newest_valid_checkpoint, step_of
from lmstack.run_record import read_lines

SCRIPT = Path(__file__).parents[1] / "recipes" / "spike_guard_on_a_mesh.py"
STRATEGIES = ["fsdp2", "tp", "pipeline"]
EXPECTED = [("skip", 7), ("skip", 31), ("skip", 32), ("rollback", 32)]


def run(folder: Path, *names: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPT, folder, *names],
        env=environment,
        capture_output=True,
        text=True,
        timeout=7200,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rollback")
    run(folder, "single")
    run(folder, *STRATEGIES)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_spike_on_one_process_of_a_mesh_is_skipped_and_rolled_back_as_on_one_process(folder: Path, name: str) -> None:
    alone, cut = (read_lines(folder / each / "spikes.jsonl") for each in ("single", name))
    assert [(line["action"], line["step"]) for line in cut] == EXPECTED
    assert cut[-1]["to_step"] == alone[-1]["to_step"]
    assert cut[-1]["rows"] == alone[-1]["rows"]
    losses = [
        [float(row["train/loss"]) for row in read_metrics(folder / each / "metrics.csv")] for each in ("single", name)
    ]
    assert len(losses[0]) == 36
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    checkpoints = [newest_valid_checkpoint(folder / each) for each in ("single", name)]
    assert [step_of(checkpoint) for checkpoint in checkpoints if checkpoint] == [36, 36]
    for file in ("model.safetensors", "average.safetensors"):
        wanted, got = (load_file(checkpoint / file) for checkpoint in checkpoints if checkpoint)
        assert got.keys() == wanted.keys()
        for weight, value in wanted.items():
            torch.testing.assert_close(got[weight], value, rtol=0, atol=1e-5, msg=weight)
