"""Tiny runs on a real step loader, with rows and gradients that can be spoilt, for tests of the spike guard."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from lmstack.callbacks import Checkpointing, MetricsCsv, RunRecorder, SpikeGuard, WeightAverage
from lmstack.callbacks.metrics_csv import read_metrics
from lmstack.data.batch import TokenBatch
from lmstack.data.batch_size import BatchSizePlan
from lmstack.data.rank import Rank
from lmstack.data.skipped_rows import SkippedRows
from lmstack.data.step_loader import StepLoader
from lmstack.run_record import read_lines
from tiny_run import VOCAB, StepData, batch_of, tiny_config, tiny_stage, tiny_trainer

ROWS_PER_STEP = 4


class Rows:
    """Row k says one token over and over, which is soon learnt; a spoilt one says anything."""

    def __init__(self, rank: Rank, spoilt: Collection[int], missing: SkippedRows) -> None:
        self.plan = BatchSizePlan(ROWS_PER_STEP, 8)
        self.rank, self.spoilt, self.missing = rank, spoilt, missing
        self.skipped = SkippedRows()

    def leave_out(self, skipped: SkippedRows) -> None:
        self.skipped = skipped

    def __getitem__(self, position: int) -> list[TokenBatch]:
        share = self.rank.share(ROWS_PER_STEP)
        positions = np.arange(position + share.start, position + share.stop)
        rows = [self._row(place) for place in self.missing.places(self.skipped.places(positions)).tolist()]
        return [batch_of(rows[:1]), batch_of(rows[1:])]

    def _row(self, place: int) -> list[int]:
        generator = np.random.default_rng(place)
        if place in self.spoilt:
            return generator.integers(VOCAB, size=9).tolist()
        return [int(generator.integers(3))] * 9


class GuardedData(L.LightningDataModule):
    """`missing` are rows that the order never had."""

    def __init__(self, spoilt: Collection[int] = (), missing: SkippedRows | None = None) -> None:
        super().__init__()
        self.spoilt, self.missing = spoilt, missing or SkippedRows()

    def train_dataloader(self) -> StepLoader:
        assert self.trainer is not None
        return StepLoader(Rows(Rank.of(self.trainer), self.spoilt, self.missing), {"data": "tiny"})

    def val_dataloader(self) -> Any:
        return StepData([], [batch_of([[1] * 9])]).val_dataloader()

    def samples_at_step(self, step: int) -> int:
        return step * ROWS_PER_STEP

    def describe_rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        return [{"row": row} for row in range(start, stop)]


class Spoil(L.Callback):
    """Changes the gradients of some steps, counted from 0."""

    def __init__(self, steps: Collection[int], change: Callable[[torch.Tensor], Any]) -> None:
        self.steps, self.change = steps, change

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        if trainer.global_step in self.steps and trainer.global_rank == trainer.world_size - 1:
            for parameter in pl_module.parameters():
                if parameter.grad is not None:
                    self.change(parameter.grad)


class KillAt(L.Callback):
    """Dies like a killed process, when so many batches have begun in this process."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1


def run(
    folder: Path,
    guard: SpikeGuard | None,
    *,
    steps: int = 24,
    data: GuardedData | None = None,
    optimizer: Any = None,
    first: Collection[L.Callback] = (),
    extra: Collection[L.Callback] = (),
    kill_after: int | None = None,
    resume: Path | None = None,
    every_n_steps: int = 5,
    dropout: float = 0.1,
    **options: Any,
) -> dict[str, Any]:
    """The state of a run at its end."""
    average = WeightAverage(decay=0.9)
    callbacks: list[L.Callback] = [average, RunRecorder(), Checkpointing(every_n_steps=every_n_steps, keep_last=99)]
    callbacks[1:1] = [*first, *([guard] if guard else [])]
    callbacks += [*extra, *([KillAt(kill_after)] if kill_after is not None else [])]
    chosen = {} if optimizer is None else {"optimizer": optimizer}
    stage = tiny_stage(seed=0 if resume is None else 99, config=tiny_config(dropout=dropout), **chosen)
    defaults = {"max_steps": steps, "max_epochs": -1, "logger": MetricsCsv(str(folder)), "limit_val_batches": 0}
    trainer = tiny_trainer(folder, callbacks, **(defaults | options))
    try:
        trainer.fit(stage, data or GuardedData(), ckpt_path=resume)
    except (KeyboardInterrupt, SystemExit):
        assert kill_after is not None
    return {
        "step": trainer.global_step,
        "weights": stage.state_dict(),
        "average": dict(average.average),
        "optimizer": trainer.optimizers[0].state_dict(),
        "schedule": trainer.lr_scheduler_configs[0].scheduler.state_dict() if trainer.lr_scheduler_configs else {},
        "metrics": [
            {k: v for k, v in row.items() if not k.startswith("time/")} for row in read_metrics(folder / "metrics.csv")
        ],
        "decisions": read_lines(folder / "spikes.jsonl"),
    }
