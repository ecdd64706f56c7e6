"""PPO killed with SIGKILL in a rollout, in an update and in a save ends at the weights of the run that was not."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from lmstack.models.checkpoint_folder import checkpoints_in, folder_name
from tiny_run import assert_equal

SCRIPT = Path(__file__).with_name("ppo_until_killed.py")


def run(folder: Path, moment: str) -> int:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, str(SCRIPT), str(folder), moment], env=environment, check=False).returncode


def state(folder: Path) -> dict[str, Any]:
    """What training goes on from; Lightning's own counters of calls aside."""
    values: dict[str, Any] = torch.load(folder / "training_state.pt", weights_only=True)
    return {name: value for name, value in values.items() if name != "loops"}


def test_killed_in_a_rollout_an_update_and_a_save_it_ends_the_same(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole, "never") == 0
    for moment, last in (("rollout", 4), ("update", 8), ("save", 12)):
        assert run(parts, moment) == -signal.SIGKILL
        assert checkpoints_in(parts)[-1].name == folder_name(last)
    assert list((parts / "checkpoints").glob(".partial*"))  # the save was indeed cut
    assert run(parts, "never") == 0
    assert [folder.name for folder in checkpoints_in(parts)][-1] == folder_name(28)
    ends = [checkpoints_in(run)[-1] for run in (whole, parts)]
    assert len({hashlib.sha256((end / "model.safetensors").read_bytes()).hexdigest() for end in ends}) == 1
    assert_equal(*map(state, ends))
    assert not list((parts / "checkpoints").glob(".partial*"))
