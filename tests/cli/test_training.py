import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lmstack.cli.training import lightning_arguments

FIT = ("fit", "--config", "conf/stub.yaml")


def saved(folder: str = "runs/stub") -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(Path(folder, "config.yaml").read_text())
    return config


def test_a_run_leaves_its_config_and_metrics_in_its_folder(lmstack: Any) -> None:
    assert lmstack(*FIT, "logger=csv").status == 0
    assert sorted(path.name for path in Path("runs/stub").iterdir()) == ["config.yaml", "metrics.csv"]
    assert Path("runs/stub/metrics.csv").read_text().splitlines()[0] == "epoch,step,train/loss,val/loss"


def test_overrides_of_every_depth_reach_the_classes(lmstack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def note(self: Any) -> None:
        seen.update(model=self.model, data=self.datamodule, trainer=self.trainer)

    monkeypatch.setattr("lmstack.cli.training.RunCLI.run_command", note)
    result = lmstack(
        *FIT,
        "model=large",
        "optim=slow",
        "model.optimizer.patience=9",
        "model.transformer.positions.kind=learned",
        "model.coefs={a: 1}",
        "data.micro_batch_size=1",
        "trainer.log_every_n_steps=3",
        "callbacks=timer",
        "callbacks.timer.interval=step",
    )
    assert result.status == 0
    model, trainer = seen["model"], seen["trainer"]
    assert (model.transformer.dim, model.transformer.positions.kind) == (16, "learned")
    assert (model.optimizer.kind, model.optimizer.patience, model.coefs) == ("slow", 9, {"a": 1.0})
    assert trainer.log_every_n_steps == 3
    assert any(type(callback).__name__ == "Timer" and callback._interval == "step" for callback in trainer.callbacks)
    assert trainer.default_root_dir.endswith("runs/stub")


def test_the_saved_config_repeats_the_run(lmstack: Any) -> None:
    lmstack(*FIT, "optim=slow", "model.optimizer.lr=0.25", "logger=csv", "callbacks=timer")
    first, metrics = saved(), Path("runs/stub/metrics.csv").read_text()
    assert lmstack("fit", "--config", "runs/stub/config.yaml", "vars.name=again").status == 0
    assert Path("runs/again/metrics.csv").read_text() == metrics
    assert saved("runs/again") == first | {"vars": {"name": "again"}}


def test_the_saved_config_holds_the_defaults_of_model_and_data_and_what_trainer_was_told(lmstack: Any) -> None:
    lmstack(*FIT)
    config = saved()
    assert config["stage"] == {"model": "stub_stage.StubModel", "data": "stub_stage.StubData"}
    assert config["model"]["transformer"]["tied_embeddings"] is True
    assert config["data"]["max_tokens"] is None
    assert config["trainer"]["max_steps"] == 2
    assert "max_epochs" not in config["trainer"]
    assert "overfit_batches" not in config["trainer"]


def test_a_run_that_goes_on_with_other_values_says_so_and_keeps_the_earlier_config(lmstack: Any) -> None:
    lmstack(*FIT)
    result = lmstack(*FIT, "model.optimizer.lr=0.5")
    assert "other than when the run began: model.optimizer.lr 0.1 -> 0.5\n" in result.err
    assert yaml.safe_load(Path("runs/stub/config.1.yaml").read_text())["model"]["optimizer"]["lr"] == 0.1


def test_a_length_in_tokens_ends_the_run_with_the_loader(lmstack: Any) -> None:
    lmstack(*FIT, "trainer.max_steps=null", "data.max_tokens=100", "logger=csv")  # 4 rows x 8 tokens a step
    steps = {row.split(",")[1] for row in Path("runs/stub/metrics.csv").read_text().splitlines()[1:]}
    assert steps == {"0", "1", "2", "3"}


def test_a_run_without_an_end_is_refused(lmstack: Any) -> None:
    result = lmstack(*FIT, "trainer.max_steps=null")
    assert result.status == 2
    assert result.err == (
        "lmstack: error: the run has no end: set trainer.max_steps (optimizer steps) or data.max_tokens (training "
        "tokens).\n"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.transformer.dim=abc"], "model.transformer.dim: expected int, got 'abc'"),
        (
            ["model.transformer.dim=7"],
            "transformer.dim=7 is not a multiple of num_heads=2. Use dim=8, or set head_dim.",
        ),
        (["stage=causal_ml"], "stage: no such stage 'causal_ml'. Did you mean causal_lm? "),
        (
            ["stage.model=stub_stage.StubModle"],
            "stage: no class 'StubModle' in stub_stage. Did you mean stub_stage.StubM",
        ),
        (["trainer.accelerator=tpuu"], "You selected an invalid accelerator name: `accelerator='tpuu'`"),
        (["ckpt_path=runs/nope"], "ckpt_path: 'runs/nope' is not there."),
        (["~trainer.default_root_dir"], "trainer.default_root_dir: required, not given."),
    ],
)
def test_a_config_that_cannot_run_is_one_line_and_leaves_nothing(
    lmstack: Any, overrides: list[str], message: str
) -> None:
    result = lmstack(*FIT, *overrides)
    assert result.status == 2
    assert result.err.startswith(f"lmstack: error: {message}")
    assert result.err.count("\n") == 1
    assert result.out == ""
    assert not Path("runs").exists()


def test_no_config_is_told(lmstack: Any) -> None:
    assert "name one with --config" in lmstack("fit").err


def test_a_full_disk_is_one_line(lmstack: Any) -> None:
    result = lmstack(*FIT, "model.fail_with=disk")
    assert result.status == 1
    assert result.err == (
        "lmstack: error: no space left on device: runs/x/checkpoints/model.safetensors. Free some and go on with "
        "ckpt_path=last.\n"
    )


def test_a_false_start_leaves_no_folder(lmstack: Any) -> None:
    lmstack(*FIT, "model.fail_with=disk", "logger=csv")
    assert not Path("runs/stub").exists()


def test_an_interrupt_says_how_to_go_on(lmstack: Any) -> None:
    result = lmstack(*FIT, "model.fail_with=interrupt")
    assert result.status == 130
    assert result.err == "lmstack: interrupted. Go on with the same command and ckpt_path=last.\n"


def test_a_bug_keeps_its_traceback(lmstack: Any) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        lmstack(*FIT, "model.fail_with=a bug")


def test_validate_prints_the_result_and_leaves_the_run_alone(lmstack: Any) -> None:
    lmstack(*FIT, "logger=csv")
    before = sorted(Path("runs/stub").iterdir())
    result = lmstack("validate", "--config", "conf/stub.yaml", "logger=csv")
    assert result.status == 0
    assert "val/loss" in result.out
    assert sorted(Path("runs/stub").iterdir()) == before


def test_a_sweep_may_ask_for_the_final_metrics(lmstack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMSTACK_RESULT", "result.json")
    lmstack(*FIT)
    result = json.loads(Path("result.json").read_text())
    assert result["objective"] == pytest.approx(0.8**4)  # the weight times 0.8 a step, squared
    lmstack(*FIT, "vars.objective=train/loss")
    assert json.loads(Path("result.json").read_text())["objective"] == pytest.approx(0.8**2)


def test_callbacks_and_loggers_become_lists_and_the_lengths_follow() -> None:
    config = {
        "stage": "x",
        "vars": {},
        "trainer": {"max_steps": 5, "default_root_dir": "r"},
        "callbacks": {"a": {"class_path": "p.A", "x": 1, "inner": {"class_path": "p.B", "y": 2}}, "b": None},
        "logger": {},
        "data": {},
    }
    trainer = lightning_arguments(config)["trainer"]
    inner = {"class_path": "p.B", "init_args": {"y": 2}}
    assert trainer["callbacks"] == [{"class_path": "p.A", "init_args": {"x": 1, "inner": inner}}]
    assert trainer["logger"] is False
    assert (trainer["max_steps"], trainer["max_epochs"], trainer["check_val_every_n_epoch"]) == (5, -1, None)
    tokens = lightning_arguments({"data": {"max_tokens": 9}, "trainer": {"default_root_dir": "r"}})["trainer"]
    assert (tokens["max_steps"], tokens["max_epochs"]) == (-1, 1)


def test_the_screen_shows_no_words_of_lightning(project: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "lmstack", *FIT], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert (result.stdout, result.stderr) == ("", "")


def test_a_checkpoint_does_not_replace_what_was_asked_for(lmstack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("lmstack.cli.training.RunCLI.run_command", lambda self: seen.append(self.model.size))
    torch.save({"hyper_parameters": {"size": 99}, "state_dict": {}}, "old.ckpt")
    assert lmstack(*FIT, "model.size=3", "ckpt_path=old.ckpt").status == 0
    assert seen == [3]


@pytest.mark.slow
def test_all_ranks_share_one_run_folder(project: Path) -> None:
    folder = 'trainer.default_root_dir="runs/${run_id:}"'
    argv = [sys.executable, "-m", "lmstack", *FIT, "+strategy=ddp", "trainer.devices=2", folder, "logger=csv"]
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(list(Path("runs").iterdir())) == 1
