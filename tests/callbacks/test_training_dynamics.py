"""Norms by part of the model."""

from pathlib import Path

import lightning as L
import pytest
import torch
from tiny_run import StepData, batch_of, random_rows, tiny_stage, tiny_trainer

from lmstack.callbacks import TrainingDynamics
from lmstack.callbacks.training_dynamics import part_norms, part_of


def test_a_parameter_belongs_to_its_block_s_part_or_to_its_top_level_module() -> None:
    assert part_of("transformer.blocks.3.attention.query.weight") == "blocks.3.attention"
    assert part_of("transformer.embedding.weight") == "embedding"


def test_the_norm_of_a_part_is_that_of_its_tensors_joined() -> None:
    tensors = {"blocks.0.a.x": torch.tensor([3.0, 0.0]), "blocks.0.a.y": torch.tensor([[4.0]]), "head.w": torch.tensor([2.0])}
    norms = part_norms(tensors)
    assert {part: float(norm) for part, norm in norms.items()} == {"blocks.0.a": 5.0, "head": 2.0}


def test_the_update_s_norm_is_that_of_the_weights_difference(tmp_path: Path) -> None:
    seen: dict[str, torch.Tensor] = {}

    class Weights(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            seen["before"] = pl_module.transformer.embedding.weight.detach().clone()

    trainer = tiny_trainer(tmp_path, [TrainingDynamics(every_n_steps=1), Weights()])
    stage = tiny_stage()
    trainer.fit(stage, StepData([[batch_of(random_rows(3, lambda _: 6))]] * 2))
    after = stage.transformer.embedding.weight.detach()
    update = torch.linalg.vector_norm(after - seen["before"])
    assert trainer.callback_metrics["dynamics/update_norm/embedding"] == pytest.approx(float(update), rel=1e-5)
    ratio = float(update / torch.linalg.vector_norm(after))
    assert trainer.callback_metrics["dynamics/update_ratio/embedding"] == pytest.approx(ratio, rel=1e-5)
    assert "dynamics/gradient_norm/blocks.1.feed_forward" in trainer.callback_metrics


def test_an_interval_that_is_never_logged_is_refused(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, [TrainingDynamics(every_n_steps=3)], log_every_n_steps=2)
    with pytest.raises(ValueError, match="every_n_steps=3 is not a multiple"):
        trainer.fit(tiny_stage(), StepData([[batch_of(random_rows(3, lambda _: 6))]]))
