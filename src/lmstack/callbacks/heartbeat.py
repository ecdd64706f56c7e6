"""A sign of life of every process, and what each was doing when there is none."""

import faulthandler
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any, TextIO

import lightning as L

FOLDER = "heartbeats"
SECONDS_BETWEEN_BEATS = 1.0


class Heartbeat(L.Callback):
    """Writes `heartbeats/rank-N.json` (host, process, step) as steps and validation batches go by.

    On SIGUSR2 the process writes what each of its threads is doing to `heartbeats/rank-N.stacks.txt`, also when it
    hangs in a collective; it goes on unharmed. A supervised run (`supervise=true`) has this callback by itself.

    Args:
        hang_seconds: After so long without a beat the process writes its stacks and ends itself, with status 1. For
            runs that something else than lmstack starts again, such as torchrun; None waits for ever.
    """

    def __init__(self, hang_seconds: float | None = None) -> None:
        if hang_seconds is not None and hang_seconds <= 2 * SECONDS_BETWEEN_BEATS:
            raise ValueError(f"heartbeat.hang_seconds={hang_seconds}: must be above 2, as beats are a second apart.")
        self.hang_seconds = hang_seconds
        self._path: Path | None = None
        self._stacks: TextIO | None = None
        self._last = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """First beat, and the signal's handler.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            stage: `fit`, `validate`, `test` or `predict`.
        """
        if stage != "fit":
            return
        self._path = Path(trainer.default_root_dir) / FOLDER / f"rank-{trainer.global_rank}.json"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._stacks = self._path.with_suffix(".stacks.txt").open("w")
        faulthandler.register(signal.SIGUSR2, file=self._stacks, all_threads=True)
        self._beat(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Beat.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            batch: Ignored.
            batch_idx: Ignored.
        """
        self._beat(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Beat.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            outputs: Ignored.
            batch: Ignored.
            batch_idx: Ignored.
        """
        self._beat(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Beat.

        Args:
            trainer: The trainer.
            *args: Ignored.
            **kwargs: Ignored.
        """
        if self._path is not None:
            self._beat(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stop listening; the last beat stays.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            stage: Ignored.
        """
        if self._stacks is not None:
            faulthandler.cancel_dump_traceback_later()
            faulthandler.unregister(signal.SIGUSR2)
            self._stacks.close()
            self._stacks = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop listening: after an exception there is no `teardown`.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            exception: Ignored.
        """
        self.teardown(trainer, pl_module, "fit")

    def _beat(self, trainer: L.Trainer) -> None:
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_BEATS and self._last:
            return
        self._last = now
        assert self._path is not None
        assert self._stacks is not None
        facts = {
            "rank": trainer.global_rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "step": trainer.global_step,
        }
        beside = self._path.with_suffix(".partial")
        beside.write_text(json.dumps(facts))
        os.replace(beside, self._path)
        if self.hang_seconds is not None:
            faulthandler.dump_traceback_later(self.hang_seconds, exit=True, file=self._stacks)
