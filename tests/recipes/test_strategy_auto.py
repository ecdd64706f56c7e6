"""`strategy=auto` in real runs: what a run began with it keeps, and on other devices it is chosen anew."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import chaos_runs
from lmstack.callbacks.metrics_csv import read_metrics

TESTS = Path(__file__).parents[1]


def fit(project: Path, *overrides: str) -> str:
    left_out = ("max_steps", "callbacks.order")
    words = [word for word in chaos_runs.command("pretrain", "runs/auto") if not any(x in word for x in left_out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-m", "lmstack", *words, *overrides],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=7200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


@pytest.mark.slow
def test_a_run_on_two_processes_keeps_its_strategy_and_on_one_gets_another(tmp_path: Path) -> None:
    chaos_runs.make_project(tmp_path)

    def trainer() -> dict[str, object]:
        found: dict[str, object] = yaml.safe_load((tmp_path / "runs/auto/config.yaml").read_text())["trainer"]
        return found

    fit(tmp_path, "strategy=fsdp2", "trainer.devices=2", "trainer.max_steps=2")
    began = trainer()
    assert "MeshStrategy" in str(began["strategy"])
    # A new run of so small a model would get ddp.
    assert "strategy=auto: as the run began" in fit(
        tmp_path, "strategy=auto", "trainer.devices=2", "trainer.max_steps=4"
    )
    assert trainer()["strategy"] == began["strategy"]
    assert trainer()["devices"] == 2
    said = fit(tmp_path, "strategy=auto", "trainer.devices=1", "trainer.max_steps=6")
    assert "strategy=auto: strategy=single on 1xcpu: " in said
    assert "other than when the run began: trainer.strategy" in said
    rows = read_metrics(tmp_path / "runs/auto/metrics.csv")
    assert [int(row["step"]) for row in rows if row.get("train/loss")] == [1, 2, 3, 4, 5, 6]
