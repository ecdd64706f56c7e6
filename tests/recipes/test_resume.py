"""Interrupted = uninterrupted, bit for bit: weights, optimizer, schedule, average, position, metrics."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lmstack.callbacks import Checkpointing, MetricsCsv, RunRecorder, Throughput, TrainingDynamics, WeightAverage
from lmstack.callbacks.metrics_csv import read_metrics
from lmstack.models import load_transformer
from lmstack.models.checkpoint_folder import checkpoints_in, folder_name, newest_valid_checkpoint
from lmstack.optim.optimizers import AdamWConfig, MuonConfig
from tiny_run import StepData, assert_equal, batch_of, random_rows, tiny_config, tiny_stage, tiny_trainer

STEPS = 7
CONFIG = tiny_config(dropout=0.2)


def data() -> StepData:
    rows = random_rows(STEPS * 4, lambda i: 3 + i % 9)
    steps = [[batch_of(rows[4 * i : 4 * i + 2]), batch_of(rows[4 * i + 2 : 4 * i + 4])] for i in range(STEPS)]
    return StepData(steps, [batch_of(random_rows(3, lambda i: 5, seed=1))])


class StopAfter(L.Callback):
    """Dies like a killed process: nothing is saved beyond what was."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def run(
    folder: Path, *, optimizer: Any = None, stop: int | None = None, resume: Path | None = None, **options: Any
) -> Any:
    every = options.pop("every_n_steps", 1)
    average = WeightAverage(decay=0.9)
    callbacks = [
        average,
        TrainingDynamics(every_n_steps=1),
        RunRecorder(),
        Checkpointing(every_n_steps=every, keep_last=99),
    ]
    if stop is not None:
        callbacks.append(StopAfter(stop))
    # Another seed for the process that resumes: what it draws must come from the checkpoint.
    stage = tiny_stage(seed=0 if resume is None else 123, config=CONFIG, optimizer=optimizer or AdamWConfig(lr=1e-2))
    trainer = tiny_trainer(folder, callbacks, logger=MetricsCsv(str(folder)), val_check_interval=3, **options)
    try:
        trainer.fit(stage, data(), ckpt_path=resume)
    except (KeyboardInterrupt, SystemExit):
        assert stop is not None
    return {
        "weights": stage.state_dict(),
        "average": dict(average.average),
        "optimizer": trainer.optimizers[0].state_dict(),
        "schedule": trainer.lr_scheduler_configs[0].scheduler.state_dict() if trainer.lr_scheduler_configs else {},
        "metrics": [
            {k: v for k, v in row.items() if not k.startswith(("time/", "throughput/", "mfu/"))}
            for row in read_metrics(folder / "metrics.csv")
        ],
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)
    return run(tmp_path_factory.mktemp("uninterrupted"))


@pytest.mark.parametrize("stop", range(1, STEPS))
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path: Path, stop: int, uninterrupted: Any) -> None:
    run(tmp_path, stop=stop)
    checkpoint = newest_valid_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.name == folder_name(stop)
    assert_equal(run(tmp_path, resume=checkpoint), uninterrupted)


def test_it_also_holds_from_an_older_checkpoint_and_twice_over(tmp_path: Path, uninterrupted: Any) -> None:
    run(tmp_path, stop=3, every_n_steps=2)
    run(tmp_path, stop=5, every_n_steps=2, resume=newest_valid_checkpoint(tmp_path))
    assert newest_valid_checkpoint(tmp_path).name == folder_name(4)
    assert_equal(run(tmp_path, resume=newest_valid_checkpoint(tmp_path), every_n_steps=2), uninterrupted)


def test_it_also_holds_for_muon(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", optimizer=MuonConfig(lr=1e-2, adamw_lr=1e-2))
    run(tmp_path / "parts", optimizer=MuonConfig(lr=1e-2, adamw_lr=1e-2), stop=4)
    resumed = run(
        tmp_path / "parts",
        optimizer=MuonConfig(lr=1e-2, adamw_lr=1e-2),
        resume=newest_valid_checkpoint(tmp_path / "parts"),
    )
    assert_equal(resumed, whole)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_it_also_holds_in_bfloat16(tmp_path: Path, precision: str) -> None:
    whole = run(tmp_path / "whole", precision=precision)
    run(tmp_path / "parts", stop=4, precision=precision)
    assert_equal(
        run(tmp_path / "parts", resume=newest_valid_checkpoint(tmp_path / "parts"), precision=precision), whole
    )


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path, uninterrupted: Any) -> None:
    run(tmp_path)
    again = run(tmp_path, resume=newest_valid_checkpoint(tmp_path))
    assert_equal(again["weights"], uninterrupted["weights"])
    assert_equal(again["metrics"], uninterrupted["metrics"])


def test_the_rows_of_the_metrics_file_are_named_by_steps_taken(uninterrupted: Any) -> None:
    rows = uninterrupted["metrics"]
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
    assert [int(row["step"]) for row in rows if row["val/loss"]] == [3, 6, 7]
    assert float(rows[-1]["train/tokens_seen"]) == data().tokens_at_step(STEPS)


def test_the_weights_of_a_checkpoint_load_without_lightning(tmp_path: Path) -> None:
    result = run(tmp_path)
    transformer = load_transformer(newest_valid_checkpoint(tmp_path))
    for name, parameter in transformer.named_parameters():
        assert torch.equal(parameter, result["weights"][f"transformer.{name}"]), name


def test_resuming_with_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    run(tmp_path, stop=2)
    stage = tiny_stage(config=tiny_config(num_layers=3))
    with pytest.raises(ValueError, match=r"num_layers=3.*trained with 2"):
        tiny_trainer(tmp_path).fit(stage, data(), ckpt_path=newest_valid_checkpoint(tmp_path))


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    callbacks = [Checkpointing(every_n_steps=2, keep_last=2, keep_best=1)]
    tiny_trainer(tmp_path, callbacks, val_check_interval=1).fit(tiny_stage(), data())
    folders = checkpoints_in(tmp_path)
    metrics = {f.name: load_manifest(f)["metrics"]["val/loss"] for f in folders}
    assert [f.name for f in folders][-2:] == [folder_name(6), folder_name(7)]
    assert len(folders) in (2, 3)
    assert min(metrics.values()) == metrics[folders[0].name]


def load_manifest(folder: Path) -> Any:
    import json

    return json.loads((folder / "manifest.json").read_text())


def test_saving_by_the_clock(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, [Checkpointing(every_n_minutes=0.0, keep_last=99)]).fit(tiny_stage(), data())
    assert len(checkpoints_in(tmp_path)) == STEPS


def test_a_checkpoint_written_in_the_background_is_the_state_before_the_next_step(tmp_path: Path) -> None:
    now, later = tmp_path / "now", tmp_path / "later"
    for folder, asynchronous in ((now, False), (later, True)):
        callbacks = [Checkpointing(every_n_steps=1, keep_last=99, asynchronous=asynchronous), Throughput(peak=1.0)]
        tiny_trainer(folder, callbacks).fit(tiny_stage(config=CONFIG), data())
    assert len(checkpoints_in(later)) == STEPS
    for folder in checkpoints_in(now):
        expected, got = (torch.load(r / "checkpoints" / folder.name / "training_state.pt") for r in (now, later))
        assert_equal(got["optimizer_states"], expected["optimizer_states"])
        ours, theirs = load_transformer(folder), load_transformer(later / "checkpoints" / folder.name)
        for a, b in zip(ours.parameters(), theirs.parameters()):
            assert torch.equal(a, b)


def test_a_background_write_that_is_overtaken_keeps_its_own_state(tmp_path: Path) -> None:
    """The write is held up until the next step has changed the weights in place."""
    from lmstack.callbacks import checkpoint_io as module

    released: list[int] = []

    class Slow(module.FolderCheckpointIO):
        def write(self, checkpoint: dict[str, Any], path: Any) -> None:
            import time

            while trainer.global_step < min(checkpoint["global_step"] + 1, STEPS):
                time.sleep(0.01)
            released.append(checkpoint["global_step"])
            super().write(checkpoint, path)

    trainer = tiny_trainer(tmp_path, [Checkpointing(every_n_steps=2, keep_last=99)], plugins=[Slow(asynchronous=True)])
    trainer.fit(tiny_stage(config=CONFIG), data())
    tiny_trainer(tmp_path / "now", [Checkpointing(every_n_steps=2, keep_last=99)]).fit(
        tiny_stage(config=CONFIG), data()
    )
    assert released == [2, 4, 6, 7]
    for folder in checkpoints_in(tmp_path / "now"):
        ours, theirs = load_transformer(folder), load_transformer(tmp_path / "checkpoints" / folder.name)
        for a, b in zip(ours.parameters(), theirs.parameters()):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_and_exits_with_its_status(tmp_path: Path, number: signal.Signals, status: int) -> None:
    script = Path(__file__).parent / "run_until_signalled.py"
    with subprocess.Popen([sys.executable, script, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 3"):
                break
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(timeout=60) == status, rest
    newest = newest_valid_checkpoint(tmp_path)
    assert newest is not None
    assert f"saved step {int(newest.name[5:])}" in rest
