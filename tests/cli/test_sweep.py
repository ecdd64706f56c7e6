import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmstack.cli.sweep import SweepJob, write_results

SWEEP = ("fit", "--config", "conf/stub.yaml", "-m", "hydra.sweep.dir=sweep")


def rows(folder: str = "sweep") -> list[dict[str, str]]:
    with Path(folder, "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Runs that would have been started; each reports how many overrides it got as its objective."""
    started: list[list[str]] = []

    def run(argv: list[str], log: Any, environment: dict[str, str]) -> int:
        started.append(argv)
        log.write("said\nlast words\n")
        if "++model.fail_with=now" in argv:
            return 3
        result = {"objective": float(len(argv)), "metrics": {"val/loss": float(len(argv))}}
        Path(environment["LMSTACK_RESULT"]).write_text(json.dumps(result))
        return 0

    monkeypatch.setattr("lmstack.cli.sweep._run", run)
    return started


def test_there_is_a_run_for_each_combination_of_values_and_groups(lmstack: Any, processes: list[list[str]]) -> None:
    result = lmstack(
        *SWEEP, "model.optimizer.lr=0.1,0.2", "model=small,large", "seed_everything=3", "--data.path", "a b"
    )
    assert result.status == 0
    changing = [argv[argv.index("--config") + 2 : -3] for argv in processes]
    assert changing == [
        [f"model={size}", f"++model.optimizer.lr={lr}", "++seed_everything=3"]
        for size in ("small", "large")
        for lr in ("0.1", "0.2")
    ]
    assert all(argv[:4] == [sys.executable, "-m", "lmstack", "fit"] for argv in processes)
    assert all(argv[-3:-1] == ["--data.path", "a b"] for argv in processes)
    folders = [argv[-1] for argv in processes]
    assert folders == [f'++trainer.default_root_dir="sweep/{n}"' for n in range(4)]


def test_the_results_are_one_table(lmstack: Any, processes: list[list[str]]) -> None:
    lmstack(*SWEEP, "model.optimizer.lr=0.1,0.2")
    assert [(row["run"], row["model.optimizer.lr"]) for row in rows()] == [("0", "0.1"), ("1", "0.2")]
    assert all(float(row["val/loss"]) > 0 for row in rows())


def test_a_sweep_that_goes_on_skips_what_is_done(lmstack: Any, processes: list[list[str]]) -> None:
    lmstack(*SWEEP, "model.optimizer.lr=0.1,0.2")
    Path("sweep/1/result.json").unlink()
    processes.clear()
    lmstack(*SWEEP, "model.optimizer.lr=0.1,0.2", "ckpt_path=last")
    assert [argv[argv.index("--config") + 2] for argv in processes] == ["++model.optimizer.lr=0.2"]
    assert len(rows()) == 2


def test_a_run_with_other_values_is_not_taken_for_done(lmstack: Any, processes: list[list[str]]) -> None:
    lmstack(*SWEEP, "model.optimizer.lr=0.1,0.2")
    lmstack(*SWEEP, "model.optimizer.lr=0.1,0.3")
    assert len(processes) == 3


def test_a_failed_run_names_its_log_and_the_others_are_run(lmstack: Any, processes: list[list[str]]) -> None:
    result = lmstack(*SWEEP, "model.fail_with=now,null")
    assert result.status == 2
    assert result.err == "lmstack: error: run 0 failed with exit status 3, see sweep/0/log.txt: last words\n"
    assert len(processes) == 2
    assert len(rows()) == 1


def test_a_wrong_group_option_stops_the_sweep_before_any_run(lmstack: Any, processes: list[list[str]]) -> None:
    result = lmstack(*SWEEP, "model=small,lrage")
    assert result.status == 2
    assert "model=lrage: no such option. Did you mean large?" in result.err
    assert processes == []


def test_each_run_is_a_process_that_changes_kinds_too(lmstack: Any) -> None:
    result = lmstack(*SWEEP, "model.transformer.positions.kind=alibi,rotary", "optim=slow")
    assert result.status == 0, result.err
    assert [row["model.transformer.positions.kind"] for row in rows()] == ["alibi", "rotary"]
    assert "kind: alibi" in Path("sweep/0/config.yaml").read_text()
    assert "theta: 500.0" in Path("sweep/1/config.yaml").read_text()
    assert float(rows()[0]["val/loss"]) == pytest.approx((1 - 2 * 0.2) ** 4)


def test_no_runs_no_table(tmp_path: Path) -> None:
    write_results(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_joblib_launcher_runs_jobs_side_by_side(lmstack: Any) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs lmstack[sweep]")
    result = lmstack(*SWEEP, "model.optimizer.lr=0.1,0.2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert result.status == 0, result.err
    assert len(rows()) == 2


@pytest.mark.slow
def test_the_submitit_local_launcher_runs_jobs(lmstack: Any) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs lmstack[sweep]")
    result = lmstack(*SWEEP, "model.optimizer.lr=0.1,0.2", "hydra/launcher=submitit_local")
    assert result.status == 0, result.err
    assert len(rows()) == 2


@pytest.mark.slow
def test_the_optuna_sweeper_minimises_the_validation_loss(project: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs lmstack[sweep]")
    argv = [
        *(sys.executable, "-m", "lmstack", *SWEEP, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3"),
        *("hydra.sweeper.n_jobs=1", "model.optimizer.lr=interval(0.01,0.4)"),
    ]
    subprocess.run(argv, check=True, cwd=project)
    best = (project / "sweep" / "optimization_results.yaml").read_text()
    assert "best_value" in best


def test_a_job_can_be_sent_to_another_process() -> None:
    import pickle

    job = pickle.loads(pickle.dumps(SweepJob("fit", "conf/stub.yaml", ["--a", "b"])))
    assert (job.command, job.fixed) == ("fit", ["--a", "b"])
    assert Path(job.config).is_absolute()
