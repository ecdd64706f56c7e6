"""Killed at random moments, a run ends as if nothing had happened. `make chaos` does it 200 times."""

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("chaos.py")


def torment(*arguments: str) -> str:
    # Another seed each time: a failure prints it, and `make chaos SEED=...` repeats its moments.
    command = [sys.executable, SCRIPT, *arguments, "--seed", str(random.SystemRandom().randrange(10**6))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_run_killed_at_random_moments_ends_as_if_nothing_had_happened() -> None:
    said = torment("--kills", "6", "--runs", "pretrain")
    assert re.search(r"chaos: 6 kills, .* no run differs by a bit", said), said


@pytest.mark.slow
def test_every_kind_of_run_does() -> None:
    said = torment("--kills", "60")
    assert re.search(r"chaos: 60 kills, .* no run differs by a bit", said), said
