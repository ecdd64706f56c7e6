"""Finds devices that compute or remember wrongly without saying so: silent data corruption."""

import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lmstack.callbacks.checkpointing import Checkpointing
from lmstack.callbacks.post_mortem import PostMortem
from lmstack.callbacks.replica_comparison import Disagreement, Finding, checksums, compare
from lmstack.models.checkpoint_folder import set_aside_after

log = logging.getLogger(__name__)


class SilentCorruptionError(RuntimeError):
    """Devices that must agree do not.

    Args:
        message: For people.
        suspects: Rank and host of each process of which one is to blame.
    """

    def __init__(self, message: str, suspects: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.suspects = suspects


class CorruptionWatch(L.Callback):
    """Every so often compares what must be the same on all devices: the weights, and the loss of a micro-batch.

    Under `ddp` every process has the same weights, and hands a micro-batch of its step to the next process: each loss
    is computed on two devices, without dropout and without a gradient. With three processes or more the odd one can be
    told. A single process computes the loss twice, which finds errors that come and go. Nothing that the run depends on
    is touched: neither weights nor random numbers. A difference is a post-mortem of every rank. For stages that take
    one optimizer step from each item of their loader.

    Args:
        every_n_steps: Optimizer steps between two comparisons, each of which costs two forwards of a micro-batch.
        policy: `stop` ends the run with status 1, sets checkpoints since the last comparison aside, and lets a
            supervisor start it again; `warn` goes on.
        tolerance: Relative difference of two losses that is let pass; 0 where all devices are of one kind.
    """

    def __init__(
        self, every_n_steps: int = 100, policy: Literal["warn", "stop"] = "stop", tolerance: float = 0.0
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(f"corruption_watch.every_n_steps={every_n_steps}: must be at least 1.")
        if not 0.0 <= tolerance < 1.0:
            raise ValueError(f"corruption_watch.tolerance={tolerance}: must be at least 0 and below 1.")
        self.every_n_steps = every_n_steps
        self.policy = policy
        self.tolerance = tolerance
        self._agreed = 0
        self._group: dist.ProcessGroup | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check that there is something to compare.

        Args:
            trainer: The trainer.
            pl_module: The stage.

        Raises:
            ValueError: Of the strategy or the stage nothing can be compared.
        """
        if type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy):
            raise ValueError(
                f"callbacks.corruption_watch: under {type(trainer.strategy).__name__} no two processes must have the "
                "same whole weights. Use it with strategy=ddp or one device, or remove it with "
                "~callbacks.corruption_watch."
            )
        if not hasattr(pl_module, "update_guard"):
            raise ValueError(
                f"callbacks.corruption_watch: {type(pl_module).__name__} takes several optimizer steps from a rollout, "
                "which has no loss to compute again. Remove it with ~callbacks.corruption_watch."
            )
        self._agreed = trainer.global_step
        if trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo")
        else:
            log.info("corruption watch: one process computes each loss twice, and cannot find a constant error.")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare when due: after the update, before the step is saved.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            outputs: Ignored.
            batch: This process's micro-batches.
            batch_idx: Ignored.
        """
        if trainer.global_step % self.every_n_steps:
            return
        parameters = dict(pl_module.named_parameters())
        finding = Finding(
            host=socket.gethostname(),
            checksums=checksums(parameters.values()),
            own_loss=_loss(trainer, pl_module, batch[0]),
            previous_loss=_loss(trainer, pl_module, self._from_previous(trainer, batch[0])),
        )
        findings = self._of_all(finding)
        disagreement = compare(findings, list(parameters), self.tolerance)
        if disagreement is None:
            self._agreed = trainer.global_step
            return
        self._act(trainer, pl_module, batch, disagreement, findings)

    def on_rollback(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget comparisons of steps that are taken again.

        Args:
            trainer: The trainer.
            pl_module: The stage.
        """
        self._agreed = min(self._agreed, trainer.global_step)

    def _act(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        disagreement: Disagreement,
        findings: list[Finding],
    ) -> None:
        error = SilentCorruptionError(
            f"Silent data corruption, found after step {trainer.global_step}: {disagreement.what}. At step "
            f"{self._agreed} there was none. Test that machine, leave it out, and go on with ckpt_path=last. If the "
            "devices are of different kinds, set callbacks.corruption_watch.tolerance.",
            [{"rank": rank, "host": findings[rank].host} for rank in disagreement.suspects],
        )
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, PostMortem):
                callback.write(trainer, pl_module, error, batch)
        if self.policy == "warn":
            if trainer.is_global_zero:
                log.warning("%s", error)
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpointing):
                callback.wait(trainer)
        if trainer.is_global_zero:
            set_aside_after(Path(trainer.default_root_dir), self._agreed)
        if self._group is not None:
            dist.barrier(group=self._group)  # the first to leave ends the others
        raise error

    def _from_previous(self, trainer: L.Trainer, micro_batch: Any) -> Any:
        """Hand a micro-batch to the next process; what the one before hands over."""
        if self._group is None:
            return micro_batch
        rank, size = trainer.global_rank, trainer.world_size
        received: list[Any] = [None]

        def send() -> None:
            dist.send_object_list([micro_batch.to("cpu")], dst=(rank + 1) % size, group=self._group)

        def receive() -> None:
            dist.recv_object_list(received, src=(rank - 1) % size, group=self._group)

        order: tuple[Callable[[], None], ...] = (send, receive) if rank % 2 == 0 else (receive, send)
        for act in order:  # who sends waits until it is received
            act()
        return received[0].to(trainer.strategy.root_device)

    def _of_all(self, finding: Finding) -> list[Finding]:
        if self._group is None:
            return [finding]
        findings: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(findings, finding, group=self._group)
        return findings


def _loss(trainer: L.Trainer, pl_module: L.LightningModule, micro_batch: Any) -> float:
    """Of an item that counts, as in validation: no random number is drawn, and the module's modes stay."""
    stage: Any = pl_module
    modes = {module: module.training for module in stage.modules()}
    stage.eval()
    try:
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            return float(stage.loss_sums(micro_batch).objective) / max(1, int(micro_batch.num_supervised))
    finally:
        for module, mode in modes.items():
            module.training = mode
