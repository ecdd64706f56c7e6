"""A progress bar that says what a person wants to know: loss, speed, time left."""

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 15.0
_SHOWN = (
    ("train/loss", "loss {:.3f}"),
    ("reward/total", "reward {:.3f}"),
    ("kl/reference", "kl {:.2f}"),
    ("val/bits_per_byte", "val bpb {:.3f}"),
    ("val/loss", "val loss {:.3f}"),
    ("val/accuracy", "val accuracy {:.3f}"),
    ("val/reward", "val reward {:.3f}"),
)


class RunProgress(ProgressBar):
    """A live bar in a terminal; elsewhere a line every 15 seconds, so that a log file stays readable."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=False)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last_line = 0.0
        self._enabled = True

    def disable(self) -> None:
        """Show nothing: Lightning calls this on every rank but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the bar.

        Args:
            trainer: The trainer.
            pl_module: The stage.
        """
        if not (self._enabled and sys.stdout.isatty()):
            return
        self._bar = Progress(
            TextColumn("[bold]" + _unit(pl_module)),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=self._console,
        )
        total = int(trainer.estimated_stepping_batches)
        self._task = self._bar.add_task("train", total=total, completed=_done(trainer, pl_module), facts="")
        self._bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            outputs: Ignored.
            batch: Ignored.
            batch_idx: Ignored.
        """
        if self._bar is not None and self._task is not None:
            if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                self._bar.update(self._task, facts=self._facts(trainer))
            self._bar.update(self._task, completed=_done(trainer, pl_module))
        elif self._enabled and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._print_line(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print a line that stays.

        Args:
            trainer: The trainer.
            pl_module: The stage.
        """
        if self._enabled and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._print_line(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the bar away.

        Args:
            trainer: The trainer.
            pl_module: The stage.
        """
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Take the bar away, so that the message is not drawn over.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            exception: Ignored.
        """
        self._close()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar.

        Args:
            *args: As for the built-in.
            **kwargs: As for the built-in.
        """
        if self._enabled:
            self._console.print(*args, highlight=False)

    def _print_line(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_line = time.monotonic()
        total = int(trainer.estimated_stepping_batches)
        done = f"{_unit(pl_module)} {_done(trainer, pl_module)}/{total}"
        self._console.print(f"{done}  {self._facts(trainer)}", highlight=False)

    def _facts(self, trainer: L.Trainer) -> str:
        metrics: dict[str, Any] = {**trainer.callback_metrics, **trainer.progress_bar_metrics}
        facts = [text.format(float(metrics[name])) for name, text in _SHOWN if name in metrics]
        if (speed := metrics.get("throughput/tokens_per_second")) is not None:
            facts.append(f"{float(speed):,.0f} tok/s")
        return "  ".join(facts)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _unit(pl_module: L.LightningModule) -> str:
    return "rollout" if hasattr(pl_module, "num_rollouts") else "step"


def _done(trainer: L.Trainer, pl_module: L.LightningModule) -> int:
    """How much of `estimated_stepping_batches` is done: rollouts take several optimizer steps each."""
    return int(getattr(pl_module, "num_rollouts", trainer.global_step))
