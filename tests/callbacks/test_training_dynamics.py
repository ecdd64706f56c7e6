"""Norms by part of the model."""

from pathlib import Path

import lightning as L
import pytest
import torch

from lmstack.callbacks import MetricsCsv, TrainingDynamics
from lmstack.callbacks.metrics_csv import read_metrics
from lmstack.callbacks.training_dynamics import part_norms, part_of
from tiny_run import StepData, batch_of, random_rows, tiny_stage, tiny_trainer


def test_a_parameter_belongs_to_its_block_s_part_or_to_its_top_level_module() -> None:
    assert part_of("transformer.blocks.3.attention.query.weight") == "blocks.3.attention"
    assert part_of("transformer.embedding.weight") == "embedding"


def test_the_norm_of_a_part_is_that_of_its_tensors_joined() -> None:
    tensors = {
        "blocks.0.a.x": torch.tensor([3.0, 0.0]),
        "blocks.0.a.y": torch.tensor([[4.0]]),
        "head.w": torch.tensor([2.0]),
    }
    norms = part_norms(tensors.items())
    assert {part: float(norm) for part, norm in norms.items()} == {"blocks.0.a": 5.0, "head": 2.0}


def test_the_update_s_norm_is_that_of_the_weights_difference(tmp_path: Path) -> None:
    seen: dict[str, torch.Tensor] = {}

    class Weights(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            seen["before"] = pl_module.transformer.embedding.weight.detach().clone()

    trainer = tiny_trainer(tmp_path, [TrainingDynamics(every_n_steps=1), Weights()], logger=MetricsCsv(str(tmp_path)))
    stage = tiny_stage()
    trainer.fit(stage, StepData([[batch_of(random_rows(3, lambda _: 6))]] * 2))
    after = stage.transformer.embedding.weight.detach()
    update = torch.linalg.vector_norm(after - seen["before"])
    row = read_metrics(tmp_path / "metrics.csv")[-1]
    assert float(row["dynamics/update_norm/embedding"]) == pytest.approx(float(update), rel=1e-5)
    ratio = float(update / torch.linalg.vector_norm(after))
    assert float(row["dynamics/update_ratio/embedding"]) == pytest.approx(ratio, rel=1e-5)
    assert float(row["dynamics/gradient_norm/blocks.1.feed_forward"]) > 0


def test_what_was_not_measured_at_a_step_is_not_logged_for_it(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, [TrainingDynamics(every_n_steps=2)], logger=MetricsCsv(str(tmp_path)))
    trainer.fit(tiny_stage(), StepData([[batch_of(random_rows(3, lambda _: 6))]] * 4))
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows if row["train/loss"]] == ["1", "2", "3", "4"]
    assert [row["step"] for row in rows if row["dynamics/weight_norm/embedding"]] == ["2", "4"]


def test_an_interval_that_is_never_logged_is_refused(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, [TrainingDynamics(every_n_steps=3)], log_every_n_steps=2)
    with pytest.raises(ValueError, match="every_n_steps=3 is not a multiple"):
        trainer.fit(tiny_stage(), StepData([[batch_of(random_rows(3, lambda _: 6))]]))
