"""Leaving on a signal, or before the time is up, without losing a step."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch

from lmstack.callbacks.checkpointing import Checkpointing, Leave

EX_TEMPFAIL = 75
"""Exit status that schedulers take as "start me again" (sysexits.h)."""

EX_INTERRUPTED = 130
"""Exit status after Ctrl-C (128 + SIGINT)."""

SLURM_END = "SLURM_JOB_END_TIME"
"""Where Slurm says when it will end the job, in seconds of Unix time."""

_EXIT_STATUS = {signal.SIGTERM: EX_TEMPFAIL, signal.SIGUSR1: EX_TEMPFAIL, signal.SIGINT: EX_INTERRUPTED}
_STARTED_AGAIN = {"LMSTACK_SUPERVISED", "TORCHELASTIC_RUN_ID"}  # by the parent, which sets them
_TIME_IS_UP = 1000  # above every signal's number, in what the ranks agree on
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>[0-5]\d):(?P<seconds>[0-5]\d)")


class Preemption(L.Callback):
    """On SIGTERM, SIGUSR1, Ctrl-C or when the time is nearly up: finish the step on every rank, save, and leave.

    The exit status is 130 for Ctrl-C and 75 for everything else. A second Ctrl-C interrupts at once, and the run goes
    on from its last checkpoint. The same command with `ckpt_path=last` continues the run exactly.

    Args:
        time_limit: How long this process may run, as Slurm writes it: `hours:minutes:seconds` or
            `days-hours:minutes:seconds`; where a supervisor or torchrun starts it again, from their start on. None
            takes the end of the Slurm job where there is one (`SLURM_JOB_END_TIME`), and else has no limit.
        margin_seconds: Leave so long before the limit; a step, a validation and a save must fit into it.
    """

    def __init__(self, time_limit: str | None = None, margin_seconds: float = 120.0) -> None:
        self.seconds_allowed = None if time_limit is None else parse_time_limit(time_limit)
        if self.seconds_allowed is not None and self.seconds_allowed <= margin_seconds:
            raise ValueError(
                f"preemption.time_limit={time_limit!r} is not longer than margin_seconds={margin_seconds:g}: the run "
                "would leave after its first step. Lower the margin."
            )
        self.margin_seconds = margin_seconds
        self.received: signal.Signals | None = None
        self._deadline = float("inf")
        self._previous: dict[signal.Signals, Any] = {}
        self._group: torch.distributed.ProcessGroup | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Install the handlers, and set the deadline.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            stage: `fit`, `validate`, `test` or `predict`.
        """
        if stage != "fit":
            return
        self._deadline = self._end() - self.margin_seconds
        for number in _EXIT_STATUS:
            self._previous[number] = signal.signal(number, self._note)
        # Lightning's handlers exit with status 0, and broadcast or (under Slurm) save from inside of the handler.
        # At every batch it broadcasts a device tensor and waits for it, to learn of a SIGTERM; we agree below.
        nothing: Callable[[], None] = lambda: None  # noqa: E731
        connector: Any = trainer._signal_connector
        connector.register_signal_handlers = nothing
        loop: Any = trainer.fit_loop.epoch_loop
        loop._broadcast_sigterm_tensor = nothing

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the group in which ranks agree.

        Args:
            trainer: The trainer.
            pl_module: The stage.
        """
        if trainer.world_size > 1:
            self._group = torch.distributed.new_group(backend="gloo")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Have the step saved and leave, when any rank got a signal or is out of time.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            outputs: Ignored.
            batch: Ignored.
            batch_idx: Ignored.

        Raises:
            SystemExit: Nothing saves here, so there is nothing to wait for.
        """
        number = self._agreed()
        if not number:
            return
        if number == _TIME_IS_UP:
            leave = Leave("time limit", EX_TEMPFAIL)
        else:
            leave = Leave(signal.Signals(number).name, _EXIT_STATUS[signal.Signals(number)])
        checkpointing = next((c for c in trainer.callbacks if isinstance(c, Checkpointing)), None)  # type: ignore[attr-defined]
        if checkpointing is None:
            raise SystemExit(leave.exit_status)
        checkpointing.request(leave)

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

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Put the previous handlers back: after an exception there is no `teardown`.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            exception: Ignored.
        """
        self.teardown(trainer, pl_module, "fit")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def _end(self) -> float:
        if self.seconds_allowed is not None:
            return _started_at() + self.seconds_allowed
        end = os.environ.get(SLURM_END, "")
        return float(end) if end.isdecimal() else float("inf")

    def _agreed(self) -> int:
        if self.received is not None:
            number = int(self.received)
        else:
            number = _TIME_IS_UP if time.time() >= self._deadline else 0
        if self._group is not None:
            tensor = torch.tensor(number)
            torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX, group=self._group)
            number = int(tensor)
        return number


def parse_time_limit(text: str) -> float:
    """Seconds of a time limit.

    Args:
        text: `hours:minutes:seconds` or `days-hours:minutes:seconds`.

    Raises:
        ValueError: It is neither.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"preemption.time_limit={text!r}: write it as hours:minutes:seconds, such as 23:30:00.")
    parts = {name: int(value or 0) for name, value in match.groupdict().items()}
    return 86400.0 * parts["days"] + 3600 * parts["hours"] + 60 * parts["minutes"] + parts["seconds"]


def _started_at() -> float:
    """When this process, or its parent that starts it again, started: in seconds of Unix time, as near as is known."""
    process = os.getppid() if _STARTED_AGAIN & os.environ.keys() else os.getpid()
    try:
        ticks = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:  # not Linux
        return time.time() - time.process_time()
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
