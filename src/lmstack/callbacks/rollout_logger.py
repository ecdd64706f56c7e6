"""Samples of reinforcement learning, with each reward term, and a line on the run's health."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from rich import box
from rich.console import Console
from rich.table import Table

from lmstack.callbacks.sample_logger import read_samples
from lmstack.data.rendering import visible
from lmstack.rl.health import diagnose

NAME = "rollouts.jsonl"
HELD_OUT = "held_out.jsonl"


class RolloutLogger(L.Callback):
    """Writes samples to `rollouts.jsonl`, to TensorBoard and, some of them, to the console, where the health line
    names what is wrong.

    Args:
        every_n_rollouts: Log the samples of every so many rollouts.
        num_written: Samples of a rollout in the file.
        num_shown: Samples on the console.
        max_characters: Of a prompt or response on the console.
    """

    def __init__(
        self, every_n_rollouts: int = 10, num_written: int = 16, num_shown: int = 2, max_characters: int = 200
    ) -> None:
        self.every_n_rollouts = every_n_rollouts
        self.num_written = num_written
        self.num_shown = num_shown
        self.max_characters = max_characters
        self._first: dict[str, float] = {}
        self._told: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        """The first rollout's metrics, with which later ones are compared."""
        return {"first": dict(self._first)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back.

        Args:
            state_dict: What `state_dict` gave.
        """
        self._first = dict(state_dict["first"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop samples of steps not yet taken.

        Args:
            trainer: The trainer.
            pl_module: The stage.
        """
        if not trainer.is_global_zero:
            return
        for name in (NAME, HELD_OUT):
            path = Path(trainer.default_root_dir) / name
            kept = [row for row in read_samples(path) if row["step"] <= trainer.global_step]
            if path.exists():
                beside = path.with_name(f".{name}.partial")
                beside.write_text("".join(_line(row) for row in kept), encoding="utf-8")
                os.replace(beside, path)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log a rollout when due; its health always.

        Args:
            trainer: The trainer.
            pl_module: A stage of policy optimization.
            outputs: Ignored.
            batch: Ignored.
            batch_idx: Ignored.
        """
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self._first = self._first or metrics
        if not trainer.is_global_zero:
            return
        for line in diagnose(metrics, self._first):
            symptom = line.partition(":")[0]
            if symptom not in self._told:  # each once: a symptom rarely leaves
                self._told.add(symptom)
                trainer.print(f"health, step {trainer.global_step}: {line}")
        if (int(metrics["rollout/number"]) - 1) % self.every_n_rollouts == 0:
            rows = pl_module.last_samples[: self.num_written]  # type: ignore[index]
            self._write(trainer, NAME, rows)  # type: ignore[arg-type]
            self._show(trainer, self._table(trainer.global_step, rows[: self.num_shown]))  # type: ignore[arg-type]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write all held-out samples.

        Args:
            trainer: The trainer.
            pl_module: A stage of policy optimization.
        """
        if trainer.is_global_zero and not trainer.sanity_checking:
            self._write(trainer, HELD_OUT, pl_module.validation_samples)  # type: ignore[arg-type]

    def _show(self, trainer: L.Trainer, table: Table) -> None:
        bar = trainer.progress_bar_callback  # draws above itself; Trainer.print would write the object's name
        if bar is not None:
            bar.print(table)
        else:
            Console(highlight=False).print(table)

    def _write(self, trainer: L.Trainer, name: str, rows: Sequence[dict[str, Any]]) -> None:
        path, step = Path(trainer.default_root_dir) / name, trainer.global_step
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(_line({"step": step, **row}) for row in rows)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for number, row in enumerate(rows[: self.num_shown]):
                    text = "".join(
                        f"    {line}\n" for line in json.dumps(row, indent=1, ensure_ascii=False).split("\n")
                    )
                    logger.experiment.add_text(f"{Path(name).stem}/{number}", text, step)

    def _table(self, step: int, rows: Sequence[dict[str, Any]]) -> Table:
        names = [name for name in (rows[0] if rows else {}) if name.startswith("reward/")]
        table = Table(title=f"samples at step {step}", box=box.SIMPLE, title_justify="left")
        for column in ("prompt", "response"):
            table.add_column(column, overflow="fold", ratio=3)
        for column in (*(name.removeprefix("reward/") for name in names), "score", "kl", "tokens", "end"):
            table.add_column(column, justify="right")
        for row in rows:
            texts = [visible(row[name])[-self.max_characters :] for name in ("prompt", "response")]
            numbers = [f"{row[name]:.3f}" for name in (*names, "score", "kl")]
            table.add_row(*texts, *numbers, str(row["length"]), row["stop_reason"])
        return table


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
