"""Killed in any step of any stage, a preparation ends with the same files. `make chaos-corpus` does it 100 times."""

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

import corpus_runs

SCRIPT = Path(__file__).with_name("chaos_corpus.py")


def torment(*arguments: str) -> str:
    # Another seed each time: a failure prints it, and `make chaos-corpus SEED=...` repeats its moments.
    command = [sys.executable, SCRIPT, *arguments, "--seed", str(random.SystemRandom().randrange(10**6))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_config_has_every_kind_of_stage() -> None:
    kinds = {stage["kind"] for stage in corpus_runs.CONFIG["stages"].values()}
    assert kinds == corpus_runs.kinds_of_stages()


def test_a_preparation_killed_in_a_few_steps_ends_with_the_same_files() -> None:
    said = torment("--kills", "4", "--some-steps", "--leave-out", "perplexity")
    assert re.search(r"chaos: 4 kills in \d+ of \d+ steps, .* no file differs", said), said


@pytest.mark.slow
def test_killed_in_every_step_it_does() -> None:
    said = torment("--kills", "80")
    found = re.search(r"chaos: (\d+) kills in (\d+) of (\d+) steps, .* no file differs", said)
    assert found, said
    assert int(found[1]) >= 80
    assert found[2] == found[3]
