"""Leaving on a signal without losing a step."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import lightning as L
import torch

from lmstack.callbacks.checkpointing import Checkpointing

EX_TEMPFAIL = 75
"""Exit status that schedulers take as "start me again" (sysexits.h)."""

EX_INTERRUPTED = 130
"""Exit status after Ctrl-C (128 + SIGINT)."""

_EXIT_STATUS = {signal.SIGTERM: EX_TEMPFAIL, signal.SIGUSR1: EX_TEMPFAIL, signal.SIGINT: EX_INTERRUPTED}


class Preemption(L.Callback):
    """On SIGTERM, SIGUSR1 or Ctrl-C: finish the optimizer step on every rank, save, and leave.

    The exit status is 75 for the first two, 130 for Ctrl-C. A second Ctrl-C interrupts at once, and the run goes on
    from its last checkpoint. The same command with `ckpt_path=last` continues the run exactly.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._group: torch.distributed.ProcessGroup | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install the handlers; Lightning has put in its own by now, and they exit with status 0.

        Args:
            trainer: The trainer.
            pl_module: The stage.
        """
        for number in _EXIT_STATUS:
            self._previous[number] = signal.signal(number, self._note)
        # Lightning broadcasts a device tensor and waits for it at every batch to learn of a SIGTERM; we agree below.
        loop: Any = trainer.fit_loop.epoch_loop
        nothing: Callable[[], None] = lambda: None  # noqa: E731
        loop._broadcast_sigterm_tensor = nothing
        if trainer.world_size > 1:
            self._group = torch.distributed.new_group(backend="gloo")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and leave, when any rank got a signal.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            outputs: Ignored.
            batch: Ignored.
            batch_idx: Ignored.

        Raises:
            SystemExit: With the status for the signal.
        """
        received = self._agreed()
        if received is None:
            return
        checkpointing = next((c for c in trainer.callbacks if isinstance(c, Checkpointing)), None)  # type: ignore[attr-defined]
        if checkpointing is not None:
            path = checkpointing.save(trainer)
            trainer.print(f"\n{received.name}: saved step {trainer.global_step} in {path}. Go on with ckpt_path=last.")
        raise SystemExit(_EXIT_STATUS[received])

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Put the previous handlers back.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            stage: Ignored.
        """
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def _agreed(self) -> signal.Signals | None:
        number = 0 if self.received is None else int(self.received)
        if self._group is not None:
            tensor = torch.tensor(number)
            torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX, group=self._group)
            number = int(tensor)
        return signal.Signals(number) if number else None
