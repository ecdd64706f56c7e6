"""Tokens per second and utilization."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lmstack.callbacks import Throughput
from lmstack.data.batch import PromptBatch
from lmstack.models.accounting import flops_per_token
from lmstack.models.peak_flops import measured_matmul_flops
from tiny_run import StepData, batch_of, random_rows, tiny_config, tiny_stage, tiny_trainer


def test_utilization_is_flops_a_token_times_tokens_a_second_over_the_peak(tmp_path: Path) -> None:
    batch = batch_of(random_rows(3, lambda _: 6))
    trainer = tiny_trainer(tmp_path, [Throughput(peak=1e9)], log_every_n_steps=2)
    trainer.fit(tiny_stage(), StepData([[batch, batch]] * 4))
    metrics = trainer.callback_metrics
    per_second = float(metrics["throughput/tokens_per_second"])
    assert per_second == pytest.approx(2 * 3 * 6 / float(metrics["time/step_seconds"]), rel=1e-5)
    for convention in ("6n", "full_attention", "causal_attention"):
        expected = flops_per_token(tiny_config(), 6, convention) * per_second / 1e9
        assert float(metrics[f"mfu/{convention}"]) == pytest.approx(expected, rel=1e-5)


def test_batches_of_prompts_are_timed_and_their_tokens_not_guessed(tmp_path: Path) -> None:
    """An item that is no list of rows, such as a rollout's prompts."""

    class Prompts(StepData):
        def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
            return batch

    class Stage(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.weight.square()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    prompts = PromptBatch([[1, 2]], [{}], torch.tensor([0]))
    trainer = tiny_trainer(tmp_path, [Throughput(peak=1e9)])
    trainer.fit(Stage(), Prompts([prompts] * 2))
    assert float(trainer.callback_metrics["time/step_seconds"]) > 0
    assert "throughput/tokens_per_second" not in trainer.callback_metrics


def test_the_measured_peak_is_a_plausible_number() -> None:
    assert 1e8 < measured_matmul_flops(torch.device("cpu"), torch.float32, size=128) < 1e14
