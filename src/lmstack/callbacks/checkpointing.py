"""When to save, and what to keep."""

import logging
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from lmstack.callbacks.checkpoint_io import FolderCheckpointIO
from lmstack.callbacks.retention import Retention
from lmstack.models.checkpoint_folder import (
    checkpoints_in,
    folder_name,
    read_manifest,
    remove_partial,
    set_aside_after,
)

log = logging.getLogger(__name__)


class Leave(NamedTuple):
    """Why and how a process ends after a save.

    Attributes:
        reason: What is said on the screen.
        exit_status: Of the process.
    """

    reason: str
    exit_status: int


class Checkpointing(Checkpoint):
    """Saves to `<run folder>/checkpoints/step-NNNNNNNN`, always between two optimizer steps, and always at the end.

    An older checkpoint is deleted only when the newer one is on disk.

    Args:
        every_n_steps: Save each time the step reaches or passes a multiple of this; None does not.
        every_n_minutes: Save when this much time has passed since the last save; None does not.
        keep_last: How many of the newest checkpoints stay, at least 1.
        keep_best: How many of the best by `monitor` stay too; above 0, every validation is followed by a save.
        keep_every_hours: One checkpoint of each so many hours stays for ever, the first of the run included; None
            keeps none for its age.
        monitor: A validation metric.
        mode: Whether the least or the largest value is best.
        asynchronous: Write in the background, from a copy of the state in host memory.
        sharded: Let each process write the part of weights and optimizer state that it holds (`shards/` in the
            checkpoint) instead of gathering all in the first one; for strategies that cut the model over a mesh.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = None,
        keep_last: int = 1,
        keep_best: int = 0,
        keep_every_hours: float | None = None,
        monitor: str = "val/loss",
        mode: Literal["min", "max"] = "min",
        asynchronous: bool = False,
        sharded: bool = False,
    ) -> None:
        if asynchronous and sharded:
            raise ValueError(
                "callbacks.checkpointing: with sharded=true the processes wait for each other while they write, which "
                "would stop training in the background too. Set asynchronous=false, or sharded=false."
            )
        self.retention = Retention(keep_last, keep_best, keep_every_hours, monitor, mode)
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.asynchronous = asynchronous
        self.sharded = sharded
        self.metrics: dict[str, float] = {}
        self._last_save_time = time.monotonic()
        self._due = False
        self._leave: Leave | None = None
        self._step = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remove what a killed run left half-written.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            stage: `fit`, `validate`, `test` or `predict`.

        Raises:
            ValueError: There is nothing to shard.
        """
        if self.sharded and not getattr(trainer.strategy, "saves_shards", False):
            raise ValueError(
                f"callbacks.checkpointing.sharded=true: {type(trainer.strategy).__name__} does not cut the model over "
                "a mesh of processes. Set it to false, or use strategy=fsdp2, tp, pipeline or one of their products."
            )
        if stage == "fit" and trainer.is_global_zero:
            remove_partial(self._run_folder(trainer))
        if isinstance(trainer.strategy.checkpoint_io, FolderCheckpointIO):
            trainer.strategy.checkpoint_io.asynchronous |= self.asynchronous
            trainer.strategy.checkpoint_io.sharded = self.sharded

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note where training starts, and rename later checkpoints: damaged ones, or those of a future given up.

        Args:
            trainer: The trainer.
            pl_module: The stage.
        """
        self._step = trainer.global_step
        if trainer.is_global_zero:
            for folder in set_aside_after(self._run_folder(trainer), trainer.global_step):
                log.warning("Going on from step %d: a later checkpoint is now %s", trainer.global_step, folder)

    def on_rollback(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count steps from where the run was put back to.

        Args:
            trainer: The trainer.
            pl_module: The stage.
        """
        self._step, self._due = trainer.global_step, False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when due; when a validation follows this step, after it.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            outputs: Ignored.
            batch: Ignored.
            batch_idx: Ignored.
        """
        step = trainer.global_step
        if self.every_n_steps is not None:  # some stages take several steps at a time
            self._due = self._due or step // self.every_n_steps > self._step // self.every_n_steps
        self._step = step
        self._due = self._due or self._time_is_up(trainer)
        loop = trainer.fit_loop.epoch_loop
        assert trainer.fit_loop._data_fetcher is not None
        if self._due and not loop._should_check_val_fx(trainer.fit_loop._data_fetcher):
            # Lightning logs a step after this hook; killed in between, a resumed run would never log it.
            trainer._logger_connector.update_train_step_metrics()
            self.save(trainer)
            self._leave_if_asked(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the metrics; save when due, or when the best are kept.

        Args:
            trainer: The trainer.
            pl_module: The stage.
        """
        if trainer.sanity_checking or (not trainer.training and trainer.state.fn != "fit"):
            return
        self.metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        if self._due or self.retention.best > 0:
            self.save(trainer)
            self._leave_if_asked(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last step.

        Args:
            trainer: The trainer.
            pl_module: The stage.
        """
        self.save(trainer)

    def request(self, leave: Leave | None = None) -> None:
        """Save when this step is over: after every other callback has seen it, and the validation if one follows.

        Every rank must ask, in a hook of the same step.

        Args:
            leave: How the process ends when the checkpoint is on disk; None goes on.
        """
        self._due = True
        self._leave = leave or self._leave

    def save(self, trainer: L.Trainer) -> Path:
        """Write a checkpoint of the current step, unless it is there already, and delete those not kept.

        Args:
            trainer: The trainer.
        """
        self._due = False
        self._last_save_time = time.monotonic()
        self.wait(trainer)
        path = self._run_folder(trainer) / "checkpoints" / folder_name(trainer.global_step)
        if not trainer.strategy.broadcast(_is_whole(path)):
            trainer.save_checkpoint(path)
            may_delete = not any(getattr(c, "holds_checkpoints", False) for c in trainer.callbacks)  # type: ignore[attr-defined]
            if trainer.is_global_zero and may_delete:
                self._delete_unkept(trainer)
        return path

    def wait(self, trainer: L.Trainer) -> None:
        """Return when the last checkpoint is on disk.

        Args:
            trainer: The trainer.
        """
        if isinstance(trainer.strategy.checkpoint_io, FolderCheckpointIO):
            trainer.strategy.checkpoint_io.wait()

    def state_dict(self) -> dict[str, Any]:
        """The metrics of the last validation."""
        return {"metrics": self.metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the metrics back.

        Args:
            state_dict: As returned by `state_dict`.
        """
        self.metrics = dict(state_dict["metrics"])

    def _leave_if_asked(self, trainer: L.Trainer) -> None:
        if self._leave is None:
            return
        self.wait(trainer)
        path = self._run_folder(trainer) / "checkpoints" / folder_name(trainer.global_step)
        trainer.print(f"\n{self._leave.reason}: saved step {trainer.global_step} in {path}. Go on with ckpt_path=last.")
        raise SystemExit(self._leave.exit_status)

    def _run_folder(self, trainer: L.Trainer) -> Path:
        return Path(trainer.default_root_dir)

    def _time_is_up(self, trainer: L.Trainer) -> bool:
        if self.every_n_minutes is None:
            return False
        # Clocks differ between ranks; the first one decides.
        return bool(trainer.strategy.broadcast(time.monotonic() - self._last_save_time >= 60 * self.every_n_minutes))

    def _delete_unkept(self, trainer: L.Trainer) -> None:
        folders = checkpoints_in(self._run_folder(trainer))
        for folder in self.retention.unkept(folders):
            trainer.strategy.remove_checkpoint(folder)


def _is_whole(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        read_manifest(path)
    except ValueError as error:
        log.warning("Replacing a damaged checkpoint: %s", error)
        return False
    return True
