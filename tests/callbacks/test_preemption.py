import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from lmstack.callbacks import Checkpointing, Preemption, preemption
from lmstack.callbacks.preemption import parse_time_limit
from lmstack.models.checkpoint_folder import newest_valid_checkpoint, step_of
from tiny_run import StepData, batch_of, random_rows, tiny_stage, tiny_trainer


class Clock(L.Callback):
    """Stands still but for a second at the end of each step."""

    def __init__(self) -> None:
        self.now = 1000.0

    def on_train_batch_end(self, *_: Any) -> None:
        self.now += 1.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(preemption.time, "time", lambda: clock.now)
    monkeypatch.setattr(preemption, "_started_at", lambda: 1000.0)
    return clock


def run(folder: Path, *callbacks: L.Callback) -> int:
    """The exit status; the checkpoint's step is in its name."""
    steps = [[batch_of(random_rows(2, lambda _: 5))]] * 20
    with pytest.raises(SystemExit) as leaving:
        tiny_trainer(folder, [*callbacks, Checkpointing()]).fit(tiny_stage(), StepData(steps))
    return leaving.value.code


@pytest.mark.parametrize(
    ("text", "seconds"), [("00:00:10", 10), ("01:02:03", 3723), ("100:00:00", 360_000), ("2-01:00:00", 176_400)]
)
def test_a_time_limit_reads_as_slurm_writes_it(text: str, seconds: int) -> None:
    assert parse_time_limit(text) == seconds


@pytest.mark.parametrize("text", ["10", "1:2:3", "00:60:00", "soon"])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="hours:minutes:seconds"):
        parse_time_limit(text)


def test_a_limit_shorter_than_the_margin_is_refused() -> None:
    with pytest.raises(ValueError, match="not longer than margin_seconds=120"):
        Preemption(time_limit="00:02:00")


def test_the_run_saves_and_leaves_before_the_limit(tmp_path: Path, clock: Clock) -> None:
    assert run(tmp_path, clock, Preemption(time_limit="00:00:10", margin_seconds=4.0)) == 75
    assert step_of(newest_valid_checkpoint(tmp_path)) == 6


def test_the_end_of_a_slurm_job_is_a_limit_and_what_is_given_goes_before_it(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(1000 + 123))
    assert run(tmp_path / "slurm", clock, Preemption()) == 75
    assert step_of(newest_valid_checkpoint(tmp_path / "slurm")) == 3
    clock.now = 1000.0
    assert run(tmp_path / "given", clock, Preemption(time_limit="00:02:05")) == 75
    assert step_of(newest_valid_checkpoint(tmp_path / "given")) == 5


def test_a_signal_while_the_run_is_set_up_is_not_lost(tmp_path: Path) -> None:
    """Lightning installs its own handler after `on_fit_start`, and ends with status 0."""

    class Early(L.Callback):
        def on_fit_start(self, *_: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    assert run(tmp_path, Preemption(), Early()) == 75
    assert step_of(newest_valid_checkpoint(tmp_path)) == 1
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("variable", [None, "LMSTACK_SUPERVISED", "TORCHELASTIC_RUN_ID"])
def test_the_time_of_a_run_that_is_started_again_goes_on(monkeypatch: pytest.MonkeyPatch, variable: str | None) -> None:
    """The limit is the job's: the parent, which starts the run again, has been there all the time."""
    for name in ("LMSTACK_SUPERVISED", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    own = preemption._started_at()
    assert own <= time.time() < own + 86400
    if variable:
        monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(os, "getppid", lambda: 1)
    earlier = own - preemption._started_at()
    assert (earlier > 0.05) is bool(variable)
