"""Fine-tuning: what is counted, what is trained, where it starts."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lmstack.callbacks import Checkpointing
from lmstack.data.batch import IGNORE_INDEX, TokenBatch
from lmstack.models import load_transformer
from lmstack.models.checkpoint_folder import newest_valid_checkpoint
from lmstack.nn.lora import LoRAConfig, has_lora, merged_state
from lmstack.stages.sft import SFT
from lmstack.tokenization.tokenizer import Tokenizer
from lmstack.tokenization.train import byte_tokenizer
from tiny_preferences import stage_arguments, tiny_weights
from tiny_run import StepData, batch_of, random_rows, tiny_config, tiny_trainer

LENGTHS = [9, 3, 12, 1, 7, 5]
ROWS = random_rows(6, lambda i: LENGTHS[i])


def sft(seed: int = 0, **arguments: Any) -> SFT:
    torch.manual_seed(seed)
    return SFT(**stage_arguments(**({"transformer": tiny_config()} | arguments)))


def answers(rows: list[list[int]], prompt_length: int = 2, width: int | None = None) -> TokenBatch:
    """The first tokens of each row are a prompt: predicting them is not learnt."""
    batch = batch_of(rows, width)
    batch.labels[:, : prompt_length - 1] = IGNORE_INDEX
    return batch


class Gradients(L.Callback):
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self.values = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}


def gradients_of(folder: Path, split: list[list[int]]) -> dict[str, torch.Tensor]:
    gradients = Gradients()
    step = [answers([ROWS[i] for i in rows]) for rows in split]
    tiny_trainer(folder, [gradients], precision="64-true").fit(sft(), StepData([step]))
    return gradients.values


def test_the_loss_is_the_mean_over_the_answers_tokens(tmp_path: Path) -> None:
    stage = sft().double()
    losses = []
    for row in ROWS:
        ids = torch.tensor(row)
        log_probs = stage.transformer.logits(stage.transformer(ids[None, :-1])).double().log_softmax(-1)[0]
        losses += [-log_probs[t, row[t + 1]] for t in range(1, len(row) - 1)]
    torch.stack(losses).mean().backward()
    expected = {name: parameter.grad for name, parameter in stage.named_parameters()}
    for name, gradient in gradients_of(tmp_path, [[0, 1], [2, 3, 4], [5]]).items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("split", [[[0], [1], [2], [3], [4], [5]], [[5, 3], [1, 2, 4, 0]], [[3], [0, 1, 2, 4, 5]]])
def test_gradients_do_not_depend_on_the_split_into_micro_batches(tmp_path: Path, split: list[list[int]]) -> None:
    """Row 3 is all prompt: its micro-batch has no label."""
    whole = gradients_of(tmp_path, [[0, 1, 2, 3, 4, 5]])
    for name, gradient in gradients_of(tmp_path, split).items():
        torch.testing.assert_close(gradient, whole[name], rtol=0, atol=1e-12, msg=name)


def test_a_step_without_any_label_is_finite_and_changes_nothing(tmp_path: Path) -> None:
    stage, before = sft(), sft()
    tiny_trainer(tmp_path).fit(stage, StepData([[answers(ROWS[3:4])]]))
    for new, old in zip(stage.parameters(), before.parameters(), strict=True):
        assert torch.equal(new, old)


def test_the_end_of_a_turn_is_learnt_also_where_it_is_the_padding_s_id(tmp_path: Path) -> None:
    """Rows of different lengths, padded with 0, the id that ends each answer."""
    rows = [[5, 9, *range(10, 10 + n), 0] for n in (1, 2, 3, 4)]
    batch = answers(rows, width=8)
    assert batch.num_supervised == sum(len(row) - 2 for row in rows)
    stage = sft()
    tiny_trainer(tmp_path).fit(stage, StepData([[batch]] * 60))
    with torch.no_grad():
        for row in rows[-1:]:
            logits = stage.transformer.logits(stage.transformer(torch.tensor([row[:-1]])))[0]
            assert logits[-1].argmax() == 0
    with torch.no_grad():
        short = stage.transformer.logits(stage.transformer(torch.tensor([rows[0][:-1]])))[0, -1].softmax(-1)
    assert short[0] == pytest.approx(0.25, abs=0.1)  # one of four rows ends there


class Tokenized(StepData):
    def __init__(self, tokenizer: Tokenizer, steps: list[list[TokenBatch]]) -> None:
        super().__init__(steps)
        self.tokenizer = tokenizer


def test_the_shape_is_that_of_the_weights_and_new_tokens_get_rows(tmp_path: Path) -> None:
    base = tiny_weights(tmp_path / "base", config=tiny_config(vocab_size=257))
    tokenizer = byte_tokenizer().with_special_tokens(["<|im_start|>", "<|im_end|>"])
    stage = sft(transformer=None, init_from=base)
    data = Tokenized(tokenizer, [[batch_of(ROWS)]])
    tiny_trainer(tmp_path, max_steps=0).fit(stage, data)
    old, new = load_transformer(base), stage.transformer
    assert new.config.vocab_size == tokenizer.vocab_size == 259
    assert torch.equal(new.embedding.weight[:257], old.embedding.weight)
    torch.testing.assert_close(new.embedding.weight[258], old.embedding.weight.mean(0), rtol=0, atol=1e-6)


def test_a_vocabulary_that_was_given_and_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"257 tokens.*vocab_size=29"):
        tiny_trainer(tmp_path).fit(sft(), Tokenized(byte_tokenizer(), [[batch_of(ROWS)]]))


def test_another_tokenizer_than_the_weights_is_refused(tmp_path: Path) -> None:
    base = tiny_weights(tmp_path / "base", config=tiny_config(vocab_size=258))
    byte_tokenizer().with_special_tokens(["<|a|>"]).save(tmp_path / "base" / "tokenizer")
    data = Tokenized(byte_tokenizer().with_special_tokens(["<|b|>"]), [[batch_of(ROWS)]])
    with pytest.raises(ValueError, match="other ids than that of"):
        tiny_trainer(tmp_path).fit(sft(transformer=None, init_from=base), data)


def test_nothing_to_start_from_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.init_from=null and model\.transformer=null"):
        sft(transformer=None)


def test_frozen_parameters_stay_and_the_others_do_not(tmp_path: Path) -> None:
    stage, before = sft(freeze=["embedding", r"blocks\.0\."]), sft()
    tiny_trainer(tmp_path).fit(stage, StepData([[answers(ROWS)]]))
    for (name, new), old in zip(stage.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(new, old) == ("embedding" in name or "blocks.0." in name), name


@pytest.mark.parametrize(("patterns", "message"), [(["blockz"], "'blockz' matches no"), (["."], "no parameter to")])
def test_a_pattern_that_cannot_be_meant_is_refused(tmp_path: Path, patterns: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_trainer(tmp_path).fit(sft(freeze=patterns), StepData([[answers(ROWS)]]))


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_checkpoint_of_adapters_is_the_merged_model(tmp_path: Path, kind: Any) -> None:
    base = tiny_weights(tmp_path / "base")
    lora = LoRAConfig(rank=2, alpha=4.0, kind=kind)
    stage = sft(transformer=None, init_from=base, lora=lora)
    tiny_trainer(tmp_path, [Checkpointing()]).fit(stage, StepData([[answers(ROWS)]] * 3))
    loaded = load_transformer(newest_valid_checkpoint(tmp_path))
    merged = merged_state(stage.transformer.state_dict(), lora)
    assert not has_lora(loaded)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, merged[name]), name
    ids = torch.tensor([ROWS[0]])
    torch.testing.assert_close(loaded(ids), stage.transformer(ids), rtol=0, atol=1e-5)
    start = load_transformer(base)
    assert (loaded(ids) - start(ids)).abs().max() > 1e-2
    assert torch.equal(
        stage.transformer.state_dict()["blocks.0.attention.query.weight"],
        start.state_dict()["blocks.0.attention.query.weight"],
    )


def test_validation_is_a_sum_over_a_sum(tmp_path: Path) -> None:
    batches = [answers(ROWS[:3]), answers(ROWS[3:4]), answers(ROWS[4:])]
    trainer = tiny_trainer(tmp_path)
    together = trainer.validate(sft(), StepData([], [answers(ROWS)]), verbose=False)[0]
    apart = trainer.validate(sft(), StepData([], batches), verbose=False)[0]
    assert apart["val/loss"] == pytest.approx(together["val/loss"], abs=1e-6)
