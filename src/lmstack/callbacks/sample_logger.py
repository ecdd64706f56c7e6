"""What the model says, as it learns to."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from rich.text import Text
from torch import Tensor

from lmstack.data.rendering import visible
from lmstack.generation import Completion, GenerationEngine, NonFiniteLogitsError, SamplingParams
from lmstack.models import Transformer
from lmstack.tokenization.chat_template import ChatTemplate

NAME = "samples.jsonl"


class SampleLogger(L.Callback):
    """Continues fixed prompts every so many steps and at the end: printed, in `samples.jsonl`, in TensorBoard.

    Samples depend on the weights and the seed only. Training does not notice: random state, modes and gradients stay as
    they are. A resumed run drops the samples of steps that will be taken again, so that the file reads as if the run
    had never been interrupted.

    Args:
        prompts: Texts to continue; an empty one starts a document. Where the data has a chat template, what a user
            says: the answers are sampled.
        every_n_steps: Sample when the step is a multiple of this.
        max_new_tokens: Length of a sample, unless the document ends before.
        temperature: 0 takes the most probable token.
        seed: Of the first prompt; each further prompt has the next one.
    """

    def __init__(
        self,
        prompts: list[str],
        every_n_steps: int,
        max_new_tokens: int = 64,
        temperature: float = 0.8,
        seed: int = 0,
    ) -> None:
        if not prompts:
            raise ValueError("SampleLogger.prompts is empty: give at least one prompt, or remove the callback.")
        if every_n_steps < 1:
            raise ValueError(f"SampleLogger.every_n_steps={every_n_steps}: must be at least 1.")
        self.prompts = list(prompts)
        self.every_n_steps = every_n_steps
        self.params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        self._engine: GenerationEngine | None = None
        self._chat_template: ChatTemplate | None = None
        self._last_step: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the prompts against the model, and put `samples.jsonl` where the resumed step left it.

        Args:
            trainer: The trainer, whose data module has a tokenizer.
            pl_module: A stage with a `transformer`.

        Raises:
            ValueError: A prompt cannot be encoded or does not fit the model.
        """
        if trainer.is_global_zero:
            self._open(trainer, pl_module)
        if trainer.global_step > 0 and self._is_due(trainer.global_step):
            self._take_weights(trainer, pl_module)
            self._sample(trainer)  # a preempted run saves before this callback's turn

    def on_rollback(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop the samples of steps that are taken again.

        Args:
            trainer: The trainer.
            pl_module: The stage.
        """
        if trainer.is_global_zero:
            self._last_step = self._rewind(_path(trainer), trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Sample when due.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            outputs: Ignored.
            batch: Ignored.
            batch_idx: Ignored.
        """
        if self._is_due(trainer.global_step):
            self._take_weights(trainer, pl_module)
            self._sample(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Sample the final weights.

        Args:
            trainer: The trainer.
            pl_module: The stage.
        """
        self._take_weights(trainer, pl_module)
        self._sample(trainer)

    def _open(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._engine = GenerationEngine(pl_module.transformer, trainer.datamodule.tokenizer)  # type: ignore[attr-defined, arg-type]
        self._chat_template = getattr(trainer.datamodule, "chat_template", None)  # type: ignore[attr-defined]
        max_len = self._engine.transformer.config.max_seq_len
        for prompt in self.prompts:
            length = len(self._encode(self._engine, prompt))
            if length >= max_len:
                raise ValueError(
                    f"SampleLogger: the prompt {prompt[:40]!r} has {length} tokens, which leaves nothing of the "
                    f"model's max_seq_len={max_len}. Shorten it."
                )
        self._last_step = self._rewind(_path(trainer), trainer.global_step)

    def _take_weights(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Where each process holds a part of the model, put it together in the first one, which samples."""
        whole_weights = getattr(trainer.strategy, "whole_weights", None)
        weights: dict[str, Tensor] | None = whole_weights() if whole_weights else None
        if weights is None or self._engine is None:
            return
        config = self._engine.transformer.config
        with torch.device("meta"):
            transformer = Transformer(config)
        names = transformer.state_dict()
        transformer.load_state_dict({name: weights[f"transformer.{name}"] for name in names}, assign=True)
        self._engine = GenerationEngine(transformer.to(trainer.strategy.root_device), self._engine.tokenizer)

    def _is_due(self, step: int) -> bool:
        return step % self.every_n_steps == 0

    def _sample(self, trainer: L.Trainer) -> None:
        step = trainer.global_step
        if self._engine is None or self._last_step == step:
            return
        self._last_step = step
        try:
            completions = self._complete(self._engine)
        except NonFiniteLogitsError as error:
            trainer.print(f"No samples at step {step}: {error}")  # what to do about it is not ours to decide
            return
        trainer.print(self._report(step, completions))
        self._append(_path(trainer), step, completions)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for number, (prompt, completion) in enumerate(zip(self.prompts, completions, strict=True)):
                    logger.experiment.add_text(f"samples/{number}", _markdown(prompt + completion.text), step)

    def _complete(self, engine: GenerationEngine) -> list[Completion]:
        stop_ids: tuple[int, ...] = ()
        if engine.tokenizer is not None and engine.tokenizer.eot_id is not None:
            stop_ids = (engine.tokenizer.eot_id,)
        if engine.tokenizer is not None and self._chat_template is not None:
            stop_ids = self._chat_template.end_ids(engine.tokenizer)
        params = replace(self.params, stop_ids=stop_ids)
        return engine.generate(
            [self._encode(engine, prompt) for prompt in self.prompts],
            [replace(params, seed=params.seed + number) for number in range(len(self.prompts))],
        )

    def _encode(self, engine: GenerationEngine, prompt: str) -> list[int]:
        if self._chat_template is None or engine.tokenizer is None:
            return engine.encode_prompt(prompt)
        return self._chat_template.render_prompt([{"role": "user", "content": prompt}], engine.tokenizer)

    def _report(self, step: int, completions: Sequence[Completion]) -> Text:
        report = Text(f"── samples at step {step}\n", "bold")
        for prompt, completion in zip(self.prompts, completions, strict=True):
            report.append(visible(prompt), "bold cyan").append(visible(completion.text))
            report.append("\n" if completion.stop_reason == "stop_id" else " …\n", "dim")
        return report

    def _append(self, path: Path, step: int, completions: Sequence[Completion]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            for prompt, completion in zip(self.prompts, completions, strict=True):
                row = {
                    "step": step,
                    "prompt": prompt,
                    "completion": completion.text,
                    "num_tokens": len(completion.token_ids),
                    "mean_log_prob": sum(completion.token_log_probs) / len(completion.token_log_probs),
                    "stop_reason": completion.stop_reason,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _rewind(self, path: Path, step: int) -> int | None:
        """Drop samples of later steps and torn ones; return the last step that is all there."""
        samples = read_samples(path)
        kept = [sample for sample in samples if sample["step"] <= step]
        if kept and kept[-1]["step"] == step and sum(s["step"] == step for s in kept) != len(self.prompts):
            kept = [sample for sample in kept if sample["step"] < step]
        if path.exists():
            beside = path.with_name(f".{NAME}.partial")
            beside.write_text("".join(json.dumps(s, ensure_ascii=False) + "\n" for s in kept), encoding="utf-8")
            os.replace(beside, path)
        return kept[-1]["step"] if kept else None


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Rows of a `samples.jsonl`, oldest first; none when there is no file, and a torn last line is left out.

    Args:
        path: The file.
    """
    if not path.exists():
        return []
    # Not splitlines(), which also breaks at characters that JSON leaves as they are.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def _path(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / NAME


def _markdown(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.split("\n"))  # indented: shown as it is
