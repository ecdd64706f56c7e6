"""When to save, what to keep, and how a checkpoint becomes a folder."""

import json
import logging
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmstack.callbacks.retention import Retention
from lmstack.models.checkpoint import WEIGHTS, save_weights
from lmstack.models.checkpoint_folder import (
    atomic_folder,
    checkpoints_in,
    folder_name,
    newest_valid_checkpoint,
    read_manifest,
    remove_partial,
    set_aside_after,
)
from lmstack.models.config import TransformerConfig
from lmstack.nn.lora import LoRAConfig, is_adapter, merged_state

__all__ = ["Checkpointing", "FolderCheckpointIO", "newest_valid_checkpoint"]

TRAINING_STATE = "training_state.pt"
ADAPTERS = "adapters.safetensors"
AVERAGE_WEIGHTS = "average.safetensors"
_TRANSFORMER = "transformer."

log = logging.getLogger(__name__)


class FolderCheckpointIO(CheckpointIO):
    """Lightning checkpoints as atomic folders: safetensors weights, config and tokenizer that load without Lightning,
    and the rest of the training state, read back without unpickling code.

    Args:
        asynchronous: Copy the state, and write the copy while training goes on; one write at a time. A failed write is
            raised at the next save, or at the end.
    """

    def __init__(self, asynchronous: bool = False) -> None:
        self.asynchronous = asynchronous
        self._executor: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the folder, or start to.

        Args:
            checkpoint: Lightning's dictionary, with the `lmstack` entry of `LanguageModule`: `transformer` (the
                config), `tokenizer`, `tokens_seen`; `extra_weights`, further safetensors files by
                name; `lora`, the config of adapters, with which `model.safetensors` is the merged weights,
                `adapters.safetensors` the adapters, and the training state holds all of them apart.
            path: The checkpoint folder.
            storage_options: Not supported.
        """
        if not self.asynchronous:
            self.write(checkpoint, path)
            return
        self.wait()
        self._executor = self._executor or ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing = self._executor.submit(self.write, _snapshot(checkpoint), path)

    def wait(self) -> None:
        """Return when nothing is being written; raise what the last write raised."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def teardown(self) -> None:
        """Finish the last write."""
        self.wait()
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def write(self, checkpoint: dict[str, Any], path: str | Path) -> None:
        """Write the folder.

        Args:
            checkpoint: As for `save_checkpoint`.
            path: The checkpoint folder.
        """
        state = dict(checkpoint)
        facts = dict(state.pop("lmstack"))
        tokenizer = facts.pop("tokenizer")
        average = state.pop("weight_average", None)
        parameters: dict[str, Tensor] = state.pop("state_dict")
        weights = {k.removeprefix(_TRANSFORMER): v for k, v in parameters.items() if k.startswith(_TRANSFORMER)}
        extra_weights: dict[str, dict[str, Tensor]] = facts.pop("extra_weights", {})
        if facts.get("lora") is not None:
            # What others load is merged; what training goes on from is kept as it is.
            state["state_dict_rest"] = parameters
            extra_weights = {**extra_weights, ADAPTERS: {k: v for k, v in weights.items() if is_adapter(k)}}
            weights = merged_state(weights, LoRAConfig(**facts["lora"]))
        else:
            state["state_dict_rest"] = {k: v for k, v in parameters.items() if not k.startswith(_TRANSFORMER)}
        state["lmstack"] = facts
        summary = {"step": state["global_step"], "tokens_seen": facts["tokens_seen"], "metrics": _metrics(state)}
        with atomic_folder(Path(path), summary) as folder:
            save_weights(folder, (weights, TransformerConfig.from_dict(facts["transformer"])))
            if tokenizer is not None:
                tokenizer.save(folder / "tokenizer")
            facts_of_adapters = {"lora": json.dumps(facts["lora"])} if facts.get("lora") else None
            for name, tensors in extra_weights.items():
                contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
                save_file(contiguous, folder / name, metadata=facts_of_adapters if name == ADAPTERS else None)
            if average is not None:
                save_file({name: tensor.contiguous() for name, tensor in average.items()}, folder / AVERAGE_WEIGHTS)
            torch.save(state, folder / TRAINING_STATE)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the folder back, after checking every hash.

        Args:
            path: The checkpoint folder.
            map_location: Where tensors go; the CPU by default.
            weights_only: Always so; nothing is unpickled as code.
        """
        folder = Path(path)
        read_manifest(folder)
        state: dict[str, Any] = torch.load(
            folder / TRAINING_STATE, map_location=map_location or "cpu", weights_only=True
        )
        rest: dict[str, Tensor] = state.pop("state_dict_rest")
        is_whole = any(name.startswith(_TRANSFORMER) for name in rest)
        weights = {} if is_whole else load_file(folder / WEIGHTS)
        state["state_dict"] = {_TRANSFORMER + name: tensor for name, tensor in weights.items()} | rest
        if (folder / AVERAGE_WEIGHTS).exists():
            state["weight_average"] = load_file(folder / AVERAGE_WEIGHTS)
        return state

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint folder.

        Args:
            path: The checkpoint folder.
        """
        # Renamed first: a half-deleted folder must not look like a checkpoint.
        doomed = Path(path).with_name(f".partial-removed-{Path(path).name}")
        Path(path).rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _snapshot(value: Any) -> Any:
    """A copy that training does not change: tensors on the CPU, containers anew, everything else as it is."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return type(value)((key, _snapshot(item)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(_snapshot(item) for item in value)
    return value


def _metrics(state: dict[str, Any]) -> dict[str, float]:
    for name, callback_state in state.get("callbacks", {}).items():
        if name.startswith(Checkpointing.__name__):
            return dict(callback_state["metrics"])
    return {}


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
    ) -> None:
        self.retention = Retention(keep_last, keep_best, keep_every_hours, monitor, mode)
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.asynchronous = asynchronous
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
        """
        if stage == "fit" and trainer.is_global_zero:
            remove_partial(self._run_folder(trainer))
        if isinstance(trainer.strategy.checkpoint_io, FolderCheckpointIO) and self.asynchronous:
            trainer.strategy.checkpoint_io.asynchronous = True

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
