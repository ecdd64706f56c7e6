"""The moving average of the weights."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lmstack.callbacks import Checkpointing, WeightAverage
from lmstack.models.checkpoint_folder import newest_valid_checkpoint
from tiny_run import StepData, batch_of, random_rows, tiny_stage, tiny_trainer

BATCH = batch_of(random_rows(3, lambda _: 6))


class Weights(L.Callback):
    def __init__(self) -> None:
        self.history: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.history.append(pl_module.transformer.embedding.weight.detach().clone())


def test_the_average_is_the_recurrence_over_the_weights_of_every_step(tmp_path: Path) -> None:
    stage, average, weights = tiny_stage(), WeightAverage(decay=0.6), Weights()
    expected = stage.transformer.embedding.weight.detach().clone()
    tiny_trainer(tmp_path, [average, weights]).fit(stage, StepData([[BATCH]] * 5))
    for step, value in enumerate(weights.history, start=1):
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.average["transformer.embedding.weight"], expected, rtol=0, atol=1e-6)


def test_validation_sees_the_average_and_training_does_not(tmp_path: Path) -> None:
    stage, average = tiny_stage(), WeightAverage(decay=0.9)
    data = StepData([[BATCH]] * 4, [BATCH])
    trainer = tiny_trainer(tmp_path, [average], val_check_interval=4)
    trainer.fit(stage, data)
    shown = float(trainer.callback_metrics["val/loss"])
    plain = tiny_stage()
    tiny_trainer(tmp_path).fit(plain, StepData([[BATCH]] * 4))
    for ours, theirs in zip(stage.parameters(), plain.parameters()):
        assert torch.equal(ours, theirs)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(average.average[name])
    expected = tiny_trainer(tmp_path).validate(plain, data, verbose=False)[0]["val/loss"]
    assert shown == pytest.approx(expected, abs=1e-6)


def test_a_checkpoint_holds_the_weights_and_beside_them_the_average(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    stage, average = tiny_stage(), WeightAverage(decay=0.9)
    callbacks = [average, Checkpointing(every_n_steps=2)]
    tiny_trainer(tmp_path, callbacks, val_check_interval=2).fit(stage, StepData([[BATCH]] * 2, [BATCH]))
    folder = newest_valid_checkpoint(tmp_path)
    assert folder is not None
    saved = load_file(folder / "average.safetensors")
    assert torch.equal(saved["transformer.embedding.weight"], average.average["transformer.embedding.weight"])
    assert torch.equal(load_file(folder / "model.safetensors")["embedding.weight"], stage.transformer.embedding.weight)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="must be in"):
        WeightAverage(decay)
