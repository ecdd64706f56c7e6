"""Samples appear where a person looks for them, and training does not notice."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lmstack.callbacks import Checkpointing
from lmstack.callbacks.sample_logger import SampleLogger, read_samples
from lmstack.generation import GenerationEngine, SamplingParams
from lmstack.models.checkpoint_folder import checkpoints_in
from lmstack.tokenization import char_tokenizer
from lmstack.tokenization.chat_template import ChatTemplate
from lmstack.tokenization.train import byte_tokenizer
from tiny_run import VOCAB, StepData, batch_of, random_rows, tiny_config, tiny_stage, tiny_trainer

ROWS = random_rows(7, lambda i: 8)
PROMPTS = ["abc", "d"]


class Data(StepData):
    tokenizer = char_tokenizer(["abcdefghijklmnopqrstuvwxyzABC"])

    def __init__(self, num_steps: int = 7) -> None:
        super().__init__([[batch_of([row])] for row in ROWS[:num_steps]])


def sampler(**arguments: Any) -> SampleLogger:
    return SampleLogger(**({"prompts": PROMPTS, "every_n_steps": 3, "max_new_tokens": 5} | arguments))


def test_it_samples_every_n_steps_and_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_trainer(tmp_path, [sampler()]).fit(tiny_stage(), Data())
    rows = read_samples(tmp_path / "samples.jsonl")
    assert [(row["step"], row["prompt"]) for row in rows] == [(s, p) for s in (3, 6, 7) for p in PROMPTS]
    assert all(row["num_tokens"] == len(row["completion"]) == 5 for row in rows)
    out = capsys.readouterr().out
    for row in rows:
        assert f"── samples at step {row['step']}\n" in out
        assert row["prompt"] + row["completion"] in out


def test_a_last_step_that_is_due_is_sampled_once(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, [sampler()]).fit(tiny_stage(), Data(num_steps=6))
    assert [row["step"] for row in read_samples(tmp_path / "samples.jsonl")] == [3, 3, 6, 6]


def test_the_last_samples_are_the_engines_for_the_final_weights(tmp_path: Path) -> None:
    stage = tiny_stage()
    tiny_trainer(tmp_path, [sampler(seed=4)]).fit(stage, Data())
    engine = GenerationEngine(stage.transformer, Data.tokenizer)
    expected = [
        engine.generate([engine.encode_prompt(prompt)], SamplingParams(max_new_tokens=5, temperature=0.8, seed=4 + i))[
            0
        ]
        for i, prompt in enumerate(PROMPTS)
    ]
    rows = read_samples(tmp_path / "samples.jsonl")[-2:]
    assert [row["completion"] for row in rows] == [completion.text for completion in expected]
    mean = sum(expected[0].token_log_probs) / 5
    assert rows[0]["mean_log_prob"] == pytest.approx(mean, abs=1e-5)


class StateAtEachStep(L.Callback):
    def __init__(self) -> None:
        self.random: list[torch.Tensor] = []
        self.training: list[bool] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.random.append(torch.get_rng_state())
        self.training.append(all(module.training for module in pl_module.modules()))


def test_training_is_bit_for_bit_as_without_it(tmp_path: Path) -> None:
    states, weights = [], []
    for callbacks in ([], [sampler(every_n_steps=1)]):
        stage, state = tiny_stage(config=tiny_config(dropout=0.2)), StateAtEachStep()
        tiny_trainer(tmp_path, [*callbacks, state]).fit(stage, Data())
        states.append(state)
        weights.append(stage.state_dict())
    without, with_samples = states
    assert all(with_samples.training)
    assert all(torch.equal(a, b) for a, b in zip(without.random, with_samples.random, strict=True))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


class Leave(L.Callback):
    """Ends the process before the step's samples are taken; first saving, as a preempted run does, or not."""

    def __init__(self, step: int, checkpointing: Checkpointing | None) -> None:
        self.step, self.checkpointing = step, checkpointing

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            if self.checkpointing is not None:
                self.checkpointing.save(trainer)
            raise SystemExit


@pytest.mark.parametrize("saves", [True, False])
@pytest.mark.parametrize(("every_n_steps", "left_at"), [(2, 5), (3, 6), (1, 4)])
def test_a_resumed_run_ends_with_the_samples_of_an_uninterrupted_one(
    tmp_path: Path, every_n_steps: int, left_at: int, saves: bool
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    tiny_trainer(whole, [sampler(every_n_steps=every_n_steps)]).fit(tiny_stage(), Data())
    checkpointing = Checkpointing(every_n_steps=3)
    interrupted = [Leave(left_at, checkpointing if saves else None), sampler(every_n_steps=every_n_steps)]
    with pytest.raises(SystemExit):
        tiny_trainer(resumed, [*interrupted, checkpointing]).fit(tiny_stage(), Data())
    (checkpoint,) = checkpoints_in(resumed)
    assert checkpoint.name == f"step-{left_at if saves else 3:08d}"
    with (resumed / "samples.jsonl").open("a") as file:
        file.write('{"step": 99, "prom')  # torn by the kill
    tiny_trainer(resumed, [sampler(every_n_steps=every_n_steps)]).fit(tiny_stage(), Data(), ckpt_path=checkpoint)
    assert (resumed / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()


def test_samples_are_text_in_tensorboard(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="", default_hp_metric=False)
    tiny_trainer(tmp_path, [sampler()], logger=logger).fit(tiny_stage(), Data())
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    shown = events.Tensors("samples/0/text_summary")
    assert [event.step for event in shown] == [3, 6, 7]
    completion = read_samples(tmp_path / "samples.jsonl")[0]["completion"]
    assert f"abc{completion}" in shown[0].tensor_proto.string_val[0].decode()


def test_diverged_weights_are_said_and_do_not_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Diverge(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            with torch.no_grad():
                pl_module.transformer.embedding.weight.fill_(float("nan"))

    trainer = tiny_trainer(tmp_path, [Diverge(), sampler()])
    trainer.fit(tiny_stage(), Data())
    assert trainer.global_step == 7
    assert "No samples at step 3" in capsys.readouterr().out
    assert read_samples(tmp_path / "samples.jsonl") == []


def test_a_prompt_that_does_not_fit_is_refused_before_the_first_step(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, [sampler(prompts=["a" * 16])])
    with pytest.raises(ValueError, match="16 tokens, which leaves nothing of the model's max_seq_len=16"):
        trainer.fit(tiny_stage(), Data())
    assert trainer.global_step == 0


def test_nothing_to_do_is_refused() -> None:
    with pytest.raises(ValueError, match="prompts is empty"):
        sampler(prompts=[])
    with pytest.raises(ValueError, match="every_n_steps=0"):
        sampler(every_n_steps=0)
    with pytest.raises(ValueError, match=r"sampling\.max_new_tokens=0"):
        sampler(max_new_tokens=0)


def test_unusual_line_ends_in_samples_are_read_back(tmp_path: Path) -> None:
    row = {"step": 1, "completion": "a\u2028b\x85c"}
    (tmp_path / "samples.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_samples(tmp_path / "samples.jsonl") == [row]


def test_the_tiny_tokenizer_fits_the_tiny_model() -> None:
    assert Data.tokenizer.vocab_size == VOCAB


class Conversations(StepData):
    """Data with a chat template, and a tokenizer that has its tokens."""

    tokenizer = byte_tokenizer().with_special_tokens(["<|im_start|>", "<|im_end|>"])
    chat_template = ChatTemplate("chatml")

    def __init__(self) -> None:
        super().__init__([[batch_of([row])] for row in ROWS[:3]])


def test_where_the_data_has_a_chat_template_a_prompt_is_what_a_user_says(tmp_path: Path) -> None:
    config = tiny_config(vocab_size=Conversations.tokenizer.vocab_size, max_seq_len=64)
    stage = tiny_stage(config=config)
    tiny_trainer(tmp_path, [sampler(prompts=["hi"], temperature=0.0)]).fit(stage, Conversations())
    tokenizer, template = Conversations.tokenizer, Conversations.chat_template
    prompt = template.render_prompt([{"role": "user", "content": "hi"}], tokenizer)
    params = SamplingParams(max_new_tokens=5, temperature=0.0, stop_ids=template.end_ids(tokenizer))
    (expected,) = GenerationEngine(stage.transformer, tokenizer).generate([prompt], params)
    row = read_samples(tmp_path / "samples.jsonl")[-1]
    assert (row["prompt"], row["completion"]) == ("hi", expected.text)
