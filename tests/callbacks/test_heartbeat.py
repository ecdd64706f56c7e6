import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from lmstack.callbacks import Heartbeat, heartbeat
from tiny_run import StepData, batch_of, random_rows, tiny_stage, tiny_trainer

STEPS = [[batch_of(random_rows(2, lambda _: 5))]] * 4
HANGS = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
import lightning as L
from lmstack.callbacks import Heartbeat
from tiny_run import StepData, batch_of, random_rows, tiny_stage, tiny_trainer

class Hang(L.Callback):
    def on_train_batch_start(self, *_):
        time.sleep(600)

steps = [[batch_of(random_rows(2, lambda _: 5))]] * 4
tiny_trainer(Path(sys.argv[1]), [Heartbeat(hang_seconds=6.0), Hang()]).fit(tiny_stage(), StepData(steps))
"""


class Look(L.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder, []

    def on_train_batch_start(self, *_: Any) -> None:
        self.seen.append(json.loads((self.folder / "heartbeats" / "rank-0.json").read_text()))
        os.kill(os.getpid(), signal.SIGUSR2)


def test_each_step_beats_and_a_signal_writes_the_stacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS_BETWEEN_BEATS", 0.0)
    look = Look(tmp_path)
    tiny_trainer(tmp_path, [Heartbeat(), look]).fit(tiny_stage(), StepData(STEPS))
    facts = {"rank": 0, "host": socket.gethostname(), "pid": os.getpid()}
    assert look.seen == [facts | {"step": step} for step in range(4)]
    stacks = (tmp_path / "heartbeats" / "rank-0.stacks.txt").read_text()
    assert stacks.count("in on_train_batch_start") >= 4


def test_beats_are_a_second_apart(tmp_path: Path) -> None:
    look = Look(tmp_path)
    tiny_trainer(tmp_path, [Heartbeat(), look]).fit(tiny_stage(), StepData(STEPS))
    assert {facts["step"] for facts in look.seen} != set(range(4))


def test_a_process_that_hangs_writes_its_stacks_and_ends(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", HANGS, tmp_path], timeout=500).returncode == 1
    assert "on_train_batch_start" in (tmp_path / "heartbeats" / "rank-0.stacks.txt").read_text()


def test_a_hang_shorter_than_the_beat_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hang_seconds=1\.0: must be above 2"):
        Heartbeat(hang_seconds=1.0)
