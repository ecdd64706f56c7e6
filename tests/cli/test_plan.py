import json
from pathlib import Path
from typing import Any

import pytest
import yaml

RUN = """
defaults: [_self_, {model: byte_tiny}, {optim: adamw}, {schedule: constant}]
stage: causal_lm
data: {path: corpus, sequence_length: 32, micro_batch_size: 2, global_batch_size: 4}
trainer: {max_steps: 100, precision: 32-true, default_root_dir: runs/x}
"""
PLAN = ("plan", "--config", "conf/real.yaml")


@pytest.fixture(autouse=True)
def _a_real_config(project: Path) -> None:
    Path("conf/real.yaml").write_text(RUN)
    Path("corpus").mkdir()
    Path("corpus/manifest.json").write_text(json.dumps({"tokenizer": {"vocab_size": 300}}))


def test_a_plan_counts_tokens_and_takes_the_speed_given(lmstack: Any) -> None:
    result = lmstack(*PLAN, "--flops-per-second", "1e9", "--devices", "2")
    assert result.status == 0
    assert "128 tokens" in result.out
    assert "12.8k" in result.out
    assert "1GFLOP/s" in result.out
    assert "2 devices" in result.out


def test_a_length_in_tokens_gives_the_steps(lmstack: Any) -> None:
    result = lmstack(*PLAN, "trainer.max_steps=null", "data.max_tokens=1000", "--flops-per-second", "1e9")
    steps = next(line for line in result.out.splitlines() if line.startswith("steps"))
    assert steps.split()[1] == "8"  # 1,000 tokens at 128 a step


def test_without_a_speed_it_is_measured_here(lmstack: Any) -> None:
    assert "measured here" in " ".join(lmstack(*PLAN).out.split())


def test_a_wrong_key_is_told_as_in_training(lmstack: Any) -> None:
    result = lmstack(*PLAN, "model.dmi=3")
    assert result.status == 2
    assert result.err.startswith("lmstack: error: model.dmi: no such key (value 3). Did you mean model.transformer.dim")
    assert "expected a number, got 'fast'" in lmstack(*PLAN, "--flops-per-second", "fast").err


def test_config_prints_what_would_run(lmstack: Any) -> None:
    result = lmstack("config", "--config", "conf/real.yaml", "model.transformer.dim=64")
    printed = yaml.safe_load(result.out)
    assert printed["model"]["transformer"]["dim"] == 64
    assert printed["model"]["transformer"]["vocab_size"] == 300
    Path("again.yaml").write_text(result.out)
    assert yaml.safe_load(lmstack("config", "--config", "again.yaml").out) == printed
