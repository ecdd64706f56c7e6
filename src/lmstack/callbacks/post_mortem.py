"""What a run was doing when it failed, kept for looking at."""

import json
import logging
import os
import shutil
import socket
import time
import traceback
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import save_file
from torch import nn

FOLDER = "post_mortem"
FACTS = "facts.json"
TRACEBACK = "traceback.txt"
BATCH = "batch.pt"
WEIGHTS = "weights.safetensors"

log = logging.getLogger(__name__)


class PostMortem(L.Callback):
    """On an exception writes `post_mortem/step-NNNNNNNN-rank-N`: traceback, batch, seed, gradient norms, weights.

    `lmstack inspect post_mortem=<that folder>` shows it, and computes the loss of the batch again. Leaving on a signal
    is no failure. What cannot be written, as on a full disk, is left out: the exception stays what is reported.

    Args:
        save_weights: Keep the weights as they were, which the loss is computed with; not those of a sharded model.
        keep: How many post-mortems of a rank stay.
    """

    def __init__(self, save_weights: bool = True, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"post_mortem.keep={keep}: must be at least 1.")
        self.save_weights = save_weights
        self.keep = keep
        self._batch: Any = None
        self._has_started = False
        self._written: BaseException | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From now on a failure is worth a look; what failed before is a matter of settings, and said in a line.

        Args:
            trainer: The trainer.
            pl_module: The stage.
        """
        self._has_started = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Hold on to the batch.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            batch: What the step is fed.
            batch_idx: Ignored.
        """
        self._batch = batch

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let go of it.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            outputs: Ignored.
            batch: Ignored.
            batch_idx: Ignored.
        """
        self._batch = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write what is known, unless whoever raised it has had it written.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            exception: What was raised.
        """
        if isinstance(exception, Exception) and self._has_started and exception is not self._written:
            self.write(trainer, pl_module, exception, self._batch)

    def write(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: Exception, batch: Any) -> None:
        """Write what is known.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            exception: What went wrong.
            batch: What the step was fed; None where it was not in a step.
        """
        self._written = exception
        root = Path(trainer.default_root_dir) / FOLDER
        folder = root / f"step-{trainer.global_step:08d}-rank-{trainer.global_rank}"
        try:
            self._delete_old(root, folder)
            folder.mkdir(parents=True)
            (folder / FACTS).write_text(json.dumps(self._facts(trainer, pl_module, exception), indent=1))
            (folder / TRACEBACK).write_text("".join(traceback.format_exception(exception)))
            if batch is not None:
                torch.save(plain(batch), folder / BATCH)
            weights = pl_module.state_dict(keep_vars=True)
            are_parts = any(hasattr(value, "full_tensor") or hasattr(value, "ds_id") for value in weights.values())
            if self.save_weights and not are_parts:
                save_file({name: value.detach().cpu().clone() for name, value in weights.items()}, folder / WEIGHTS)
            log.error("What the run was doing is in %s: lmstack inspect post_mortem=%s", folder, folder)
        except (OSError, RuntimeError) as error:  # safetensors and torch wrap what the disk says
            log.error("The post-mortem in %s is not whole: %s", folder, error)

    def _facts(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> dict[str, Any]:
        return {
            "error": "".join(traceback.format_exception_only(exception)).strip(),
            "time": time.time(),
            "step": trainer.global_step,
            "num_rollouts": getattr(pl_module, "num_rollouts", None),
            "base_seed": getattr(pl_module, "base_seed", None),
            "rank": trainer.global_rank,
            "world_size": trainer.world_size,
            "host": socket.gethostname(),
            "suspects": getattr(exception, "suspects", None),
            "pid": os.getpid(),
            "precision": str(trainer.precision),
            "learning_rates": [group["lr"] for opt in trainer.optimizers for group in opt.param_groups],
            "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
            "gradient_norms": gradient_norms(pl_module),
        }

    def _delete_old(self, root: Path, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        suffix = folder.name.rpartition("-")[2]
        earlier = sorted(root.glob(f"step-*-rank-{suffix}"), key=lambda path: path.stat().st_mtime)
        for path in earlier[: max(0, len(earlier) - self.keep + 1)]:
            shutil.rmtree(path)


def gradient_norms(module: nn.Module) -> dict[str, float]:
    """The 2-norm of each parameter's gradient as it is, of this rank's shard where there are shards.

    Args:
        module: Whose parameters; those without a gradient are left out.
    """
    norms = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            gradient: Any = parameter.grad
            local = gradient.to_local() if hasattr(gradient, "to_local") else gradient
            norms[name] = float(torch.linalg.vector_norm(local, dtype=torch.float32))
    return norms


def plain(batch: Any) -> Any:
    """A batch as plain containers of CPU tensors, which are read back without running code.

    Args:
        batch: Batches of `lmstack.data.batch`, in any containers.
    """
    if is_dataclass(batch) and not isinstance(batch, type):
        return {"type": type(batch).__name__, "fields": {name: plain(value) for name, value in vars(batch).items()}}
    if isinstance(batch, torch.Tensor):
        return batch.detach().cpu()
    if isinstance(batch, dict):
        return {name: plain(value) for name, value in batch.items()}
    if isinstance(batch, list | tuple):
        return [plain(value) for value in batch]
    return batch
