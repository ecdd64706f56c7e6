"""Two data-parallel processes make the update that one makes."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tiny_corpus import tiny_corpus

SCRIPT = Path(__file__).with_name("ppo_of_two_rollouts.py")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["separate", "shared", "mix", "grpo"])
def test_two_processes_update_as_one(tmp_path: Path, kind: str) -> None:
    """Two rollouts of unequal shares and unequal responses; in float64, where only the order of sums differs."""
    letters = random.Random(0)
    texts = {"a": ["".join(letters.choices("abcdefgh ", k=30)) for _ in range(9)]}
    corpus = tiny_corpus(tmp_path, texts, {})
    for world in (1, 2):
        command = [sys.executable, SCRIPT, str(world), kind, corpus, tmp_path / f"{world}.pt"]
        subprocess.run(command, check=True, timeout=300)
    one, two = torch.load(tmp_path / "1.pt"), torch.load(tmp_path / "2.pt")
    assert two["kl"] == pytest.approx(one["kl"], abs=1e-9)
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, rtol=0, atol=1e-6, msg=name)
    for ours, theirs in zip(two["metrics"], one["metrics"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
