"""Under torchrun: a worker that is killed costs nothing, and the number of workers may change."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import chaos_runs
from lmstack.callbacks.metrics_csv import read_metrics

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elastic")
    chaos_runs.make_project(folder)
    return folder


def start(project: Path, run: str, workers: int, *overrides: str) -> subprocess.Popen[str]:
    words = [
        *(word for word in chaos_runs.command("pretrain", run) if "dropout" not in word and "max_steps" not in word),
        "strategy=ddp",
        f"trainer.devices={workers}",
        "callbacks.heartbeat.class_path=lmstack.callbacks.Heartbeat",
        *overrides,
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    path = os.pathsep.join([str(TESTS), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen(
        [*torchrun, "--max-restarts=2", "-m", "lmstack", *words],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def undisturbed(project: Path) -> dict[str, Any]:
    finish(start(project, "runs/undisturbed", 2, "trainer.max_steps=18"))
    return chaos_runs.outcome(project / "runs/undisturbed")


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_the_run_ends_as_if_nothing_had_happened(
    project: Path, undisturbed: dict[str, Any]
) -> None:
    process = start(project, "runs/killed", 2, "trainer.max_steps=18")
    folder, end = project / "runs/killed", time.monotonic() + 900
    while not (folder / "checkpoints" / "step-00000006").exists() and time.monotonic() < end:
        time.sleep(0.01)
        assert process.poll() is None, process.communicate()[0]
    worker = json.loads((folder / "heartbeats" / "rank-1.json").read_text())["pid"]
    os.kill(worker, signal.SIGKILL)
    said = finish(process)
    assert "going on from runs/killed/checkpoints/step-" in said
    assert len(json.loads((folder / "run.json").read_text())) == 2
    assert chaos_runs.first_difference(chaos_runs.outcome(folder), undisturbed) is None


@pytest.mark.slow
def test_two_workers_then_one_then_two_take_the_same_samples_with_the_same_loss(
    project: Path, undisturbed: dict[str, Any]
) -> None:
    for workers, steps in ((2, 6), (1, 12), (2, 18)):
        finish(start(project, "runs/elastic", workers, f"trainer.max_steps={steps}"))
    found = chaos_runs.outcome(project / "runs/elastic")
    assert found["order"] == undisturbed["order"]
    losses = [
        [float(row["train/loss"]) for row in read_metrics(project / run / "metrics.csv")]
        for run in ("runs/undisturbed", "runs/elastic")
    ]
    assert len(losses[0]) == 18
    assert losses[1] == pytest.approx(losses[0], abs=2e-5)  # sums of float32 in another order
