"""Next-token prediction, from warm start to scores."""

import math
from pathlib import Path

import pytest
import torch

from lmstack.data.modules import PretrainingData
from lmstack.models.checkpoint import save_weights
from lmstack.optim.optimizers import AdamWConfig
from lmstack.optim.schedules import ConstantSchedule
from tiny_corpus import tiny_corpus
from tiny_run import VOCAB, StepData, batch_of, random_rows, tiny_config, tiny_stage, tiny_trainer

ROWS = random_rows(4, lambda i: 4 + i)


def test_a_batch_is_learnt_by_heart(tmp_path: Path) -> None:
    stage = tiny_stage(optimizer=AdamWConfig(lr=3e-2, weight_decay=0.0), schedule=ConstantSchedule())
    trainer = tiny_trainer(tmp_path)
    trainer.fit(stage, StepData([[batch_of(ROWS)]] * 80))
    assert float(trainer.callback_metrics["train/loss"]) < 0.05


def test_the_first_loss_is_near_that_of_a_uniform_guess(tmp_path: Path) -> None:
    stage = tiny_stage()
    loss = tiny_trainer(tmp_path).validate(stage, StepData([], [batch_of(ROWS)]), verbose=False)[0]["val/loss"]
    assert loss == pytest.approx(math.log(VOCAB), abs=0.3)


@pytest.mark.parametrize("stride", [None, 3])
def test_bits_per_byte_of_a_source_are_those_of_a_corpus_that_holds_nothing_else(
    tmp_path: Path, stride: int | None
) -> None:
    held_out = {"a": ["never seen, " * 5], "b": ["nor this", "nor that", "xyz"]}
    stage = tiny_stage(config=tiny_config(vocab_size=257))

    def validate(name: str, sources: dict[str, list[str]]) -> dict[str, float]:
        corpus = str(tiny_corpus(tmp_path / name, {"a": ["to learn from"]}, sources))
        data = PretrainingData(corpus, 8, 2, 2, validation_stride=stride)
        return dict(tiny_trainer(tmp_path).validate(stage, data, verbose=False)[0])

    both = validate("both", held_out)
    alone = {name: validate(name, {name: texts}) for name, texts in held_out.items()}
    for name, values in alone.items():
        assert both[f"val/bits_per_byte/{name}"] == pytest.approx(values["val/bits_per_byte"], rel=1e-5)
        assert not any(key.startswith("val/bits_per_byte/") for key in values)  # one source is the whole
    sizes = {name: sum(map(len, texts)) for name, texts in held_out.items()}
    mean = sum(sizes[name] * values["val/bits_per_byte"] for name, values in alone.items()) / sum(sizes.values())
    assert both["val/bits_per_byte"] == pytest.approx(mean, rel=1e-5)


def test_a_copied_sequence_is_predicted_which_shifted_labels_would_not_allow(tmp_path: Path) -> None:
    """TRAPS 7: with labels shifted twice or not at all, a repeated random string cannot reach this loss."""
    generator = torch.Generator().manual_seed(1)
    halves = torch.randint(VOCAB, (400, 6), generator=generator)
    rows = torch.cat([halves, halves], dim=1).tolist()
    steps = [[batch_of(rows[i : i + 40])] for _ in range(40) for i in range(0, 400, 40)]
    stage = tiny_stage(config=tiny_config(dim=32), optimizer=AdamWConfig(lr=1e-2), schedule=ConstantSchedule(warmup=10))
    tiny_trainer(tmp_path).fit(stage, StepData(steps))
    batch = batch_of(rows[:40])
    with torch.no_grad():
        log_probs = stage.predict_step(batch, 0)
    assert -log_probs[:, 5:].mean() < 0.5
    assert -log_probs[:, :5].mean() > 1.5


def test_predictions_are_the_log_probabilities_of_the_labels() -> None:
    stage, batch = tiny_stage(), batch_of(ROWS)
    with torch.no_grad():
        log_probs = stage.predict_step(batch, 0)
        row = torch.tensor(ROWS[0])
        logits = stage.transformer.logits(stage.transformer(row[None, :-1]))[0]
    expected = logits.log_softmax(-1).gather(1, row[1:, None])[:, 0]
    torch.testing.assert_close(log_probs[0, : len(expected)], expected, rtol=0, atol=1e-5)
    assert (log_probs[0, len(expected) :] == 0).all()


def test_a_warm_start_takes_the_weights_and_a_grown_vocabulary_keeps_what_it_knew(tmp_path: Path) -> None:
    old = tiny_stage(seed=3)
    save_weights(tmp_path / "weights", old.transformer)
    grown = tiny_stage(seed=4, config=tiny_config(vocab_size=VOCAB + 5), init_from=str(tmp_path / "weights"))
    tiny_trainer(tmp_path, max_steps=1, limit_val_batches=0).validate(
        grown, StepData([], [batch_of(ROWS)]), verbose=False
    )
    assert torch.equal(grown.transformer.embedding.weight[:VOCAB], old.transformer.embedding.weight)
    for ours, theirs in zip(grown.transformer.blocks.parameters(), old.transformer.blocks.parameters()):
        assert torch.equal(ours, theirs)


def test_no_z_loss_is_bit_identical_to_its_coefficient_being_zero_and_a_z_loss_is_not(tmp_path: Path) -> None:
    def weights(**arguments: float) -> torch.Tensor:
        stage = tiny_stage(**arguments)
        tiny_trainer(tmp_path).fit(stage, StepData([[batch_of(ROWS)]] * 3))
        return stage.transformer.embedding.weight.detach()

    assert torch.equal(weights(), weights(z_loss_coef=0.0))
    assert not torch.equal(weights(), weights(z_loss_coef=0.1))
