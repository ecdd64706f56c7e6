"""Skips updates that would harm the run, and goes back when skipping is not enough."""

from collections import deque
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import lightning as L
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lmstack.callbacks.checkpoint_io import FolderCheckpointIO
from lmstack.callbacks.checkpointing import Checkpointing
from lmstack.callbacks.decision_log import DecisionLog, sentence
from lmstack.callbacks.rollback import checkpoint_before, restart_loader, restore_run, scale_learning_rate
from lmstack.callbacks.spike_policies import CALM_STEPS, RollbackPolicy, SkipPolicy, StopPolicy
from lmstack.models.checkpoint_folder import checkpoints_in, step_of
from lmstack.optim.spike_detector import SpikeDetector
from lmstack.run_record import read_lines


class _Pending(NamedTuple):
    """A verdict on its way from the device."""

    step: int
    numbers: Tensor
    arrived: Any


class SpikeGuard(L.Callback):
    """Judges every optimizer step by its loss and gradient norm, and leaves out the update of one that is rejected.

    Then weights, moments, the optimizer's counter and weight averages stay as they are, bit for bit; the step counts,
    so the learning rate and the data go on. The judgement and the skip happen on the device; a CUDA device is asked
    one step later what it decided. Every decision is a line of `spikes.jsonl` in the run folder; `lmstack inspect
    spike=N` shows the text. All ranks decide alike. For stages that take one optimizer step from each item of their
    loader.

    Args:
        policy: What happens after rejected steps.
        threshold: Robust standard deviations above the median of the last steps, at which loss or the logarithm of
            the gradient norm is an outlier; above 0.
        window: Accepted steps that are remembered.
        min_history: Accepted steps before which only what is not finite is rejected.
    """

    def __init__(
        self,
        policy: SkipPolicy | RollbackPolicy | StopPolicy,
        *,
        threshold: float = 8.0,
        window: int = 128,
        min_history: int = 32,
    ) -> None:
        self.policy = policy
        self.detector = SpikeDetector(threshold=threshold, window=window, min_history=min_history)
        self.num_decisions = 0
        self.rollbacks: list[dict[str, Any]] = []
        self._pending: deque[_Pending] = deque()
        self._strikes: list[int] = []
        self._due = False
        self._trainer: L.Trainer | None = None

    @property
    def holds_checkpoints(self) -> bool:
        """Whether no checkpoint may be deleted now: one of them may be needed."""
        return isinstance(self.policy, RollbackPolicy) and (
            bool(self._strikes) or any(numbers[-1] for _, numbers in self._arrived())
        )

    # ---- every step -----------------------------------------------------------------------------------------------

    def judge(self, loss: Float[Tensor, ""], grad_norm: Float[Tensor, ""]) -> Bool[Tensor, ""]:
        """Whether the update of the present step is left out.

        Args:
            loss: Of the whole step, all ranks.
            grad_norm: Of the whole model, before clipping.
        """
        assert self._trainer is not None
        verdict = self.detector.judge(loss, grad_norm)
        numbers, arrived = verdict.numbers, None
        if numbers.device.type == "cuda":
            numbers = torch.empty(numbers.shape, pin_memory=True).copy_(numbers, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self._pending.append(_Pending(self._trainer.global_step, numbers, arrived))
        return verdict.is_rejected

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Act on what is known by now.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            outputs: Ignored.
            batch: Ignored.
            batch_idx: Ignored.
        """
        is_late = trainer.strategy.root_device.type == "cuda" and not trainer.should_stop
        while self._pending and not self._due and self._pending[0].step < trainer.global_step - is_late:
            step, numbers, arrived = self._pending.popleft()
            if arrived is not None:
                arrived.synchronize()
            self._note(trainer, step, numbers.tolist())
        if self._due:
            guarded: Any = pl_module
            guarded.after_step = partial(self._roll_back, trainer)

    def _note(self, trainer: L.Trainer, step: int, numbers: list[float]) -> None:
        if not numbers[-1]:
            if self._strikes and step - self._strikes[-1] >= CALM_STEPS:
                self._strikes = []
            return
        self._strikes.append(step)
        self._write(trainer, {"action": "skip", "step": step + 1, **self._facts(trainer, step, numbers)})
        if len(self._strikes) >= self.policy.max_strikes:
            if isinstance(self.policy, RollbackPolicy):
                self._due = True
            else:
                self._stop(trainer, f"{len(self._strikes)} updates were skipped (policy.max_strikes)")

    def _arrived(self) -> list[tuple[int, list[float]]]:
        """Verdicts that nothing has followed from yet, by step; waits for the device."""
        for _, _, arrived in self._pending:
            if arrived is not None:
                arrived.synchronize()
        return [(step, numbers.tolist()) for step, numbers, _ in self._pending]

    def _facts(self, trainer: L.Trainer, step: int, numbers: list[float]) -> dict[str, Any]:
        """What a line says of a rejected step."""
        loss, norm, loss_score, norm_score, _ = numbers
        facts: dict[str, Any] = {
            "loss": loss,
            "grad_norm": norm,
            "loss_deviations": loss_score,
            "grad_norm_deviations": norm_score,
            "strike": len(self._strikes),
        }
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        loader: Any = trainer.train_dataloader
        if not hasattr(data, "samples_at_step") or not hasattr(loader, "skipped"):
            return facts
        first, last = data.samples_at_step(step), data.samples_at_step(step + 1)
        rows = loader.skipped.window(first, last)
        skipped = [list(window) for window in loader.skipped.windows]
        facts |= {"rows": list(rows), "samples_seen": first, "skipped": skipped}
        return facts | ({"origins": data.describe_rows(*rows)} if hasattr(data, "describe_rows") else {})

    # ---- acting ---------------------------------------------------------------------------------------------------

    def _roll_back(self, trainer: L.Trainer) -> None:
        """Go back to a checkpoint from before the strikes, and leave out their data."""
        policy, data = self.policy, trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(policy, RollbackPolicy)
        first, last = self._strikes[0], self._strikes[-1]
        again = bool(self.rollbacks) and first <= self.rollbacks[-1]["step"] + self.detector.window
        in_a_row = self.rollbacks[-1]["in_a_row"] + 1 if again else 1
        if in_a_row > policy.max_rollbacks:
            self._stop(trainer, f"{policy.max_rollbacks} rollbacks in a row did not help (policy.max_rollbacks)")
        margin = policy.margin_steps * 2 ** (in_a_row - 1)
        target = self._choose(trainer, first - margin, first)
        if target is None:
            self._stop(trainer, f"there is no checkpoint from before step {first + 1} to go back to")
        begin = max(first - margin, step_of(target))
        loader: Any = trainer.train_dataloader
        rows = loader.skipped.window(data.samples_at_step(begin), data.samples_at_step(last + 1 + margin))
        if trainer.is_global_zero:
            for folder in reversed(checkpoints_in(Path(trainer.default_root_dir))):
                if step_of(folder) > step_of(target):  # of a run that did not happen; resuming must not find them
                    trainer.strategy.remove_checkpoint(folder)
        self._write(
            trainer,
            {
                "action": "rollback",
                "step": last + 1,
                "to_step": step_of(target),
                "rows": list(rows),
                "lr_factor": policy.lr_factor,
                "in_a_row": in_a_row,
            },
        )
        trainer.strategy.barrier("rollback")
        restore_run(trainer, target)
        self._catch_up(trainer, goes_on=True)
        restart_loader(trainer)

    def _choose(self, trainer: L.Trainer, wanted: int, latest: int) -> Any:
        if isinstance(trainer.strategy.checkpoint_io, FolderCheckpointIO):
            trainer.strategy.checkpoint_io.wait()
        found = checkpoint_before(Path(trainer.default_root_dir), wanted, latest) if trainer.is_global_zero else None
        return trainer.strategy.broadcast(found)

    def _stop(self, trainer: L.Trainer, why: str) -> NoReturn:
        step = self._strikes[-1] + 1
        self._write(trainer, {"action": "stop", "step": step, "reason": why})
        raise ValueError(
            f"The spike guard stops the run at step {step}: {why}. `lmstack inspect spike=N` with the run's config "
            f"shows the text of a line of {DecisionLog(trainer.default_root_dir).path}. Then lower "
            "model.optimizer.lr, take the data out, or change callbacks.spike_guard, and go on with ckpt_path=last."
        )

    def _write(self, trainer: L.Trainer, entry: dict[str, Any]) -> None:
        entry = {"decision": self.num_decisions, **entry}
        self.num_decisions += 1
        if trainer.is_global_zero:
            DecisionLog(trainer.default_root_dir).append(entry)
        trainer.print(sentence(entry))

    # ---- set-up and resume ----------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to judge; do what was decided after the checkpoint that the run goes on from.

        Args:
            trainer: The trainer.
            pl_module: A stage of supervised learning.

        Raises:
            ValueError: The stage, the strategy or the data cannot be guarded so.
        """
        self._refuse(trainer, pl_module)
        self._trainer = trainer
        self.detector.to(trainer.strategy.root_device)
        guarded: Any = pl_module
        guarded.update_guard = self.judge
        trainer.fit_loop._load_combined_loader_states()  # the stage would, after this
        self._catch_up(trainer, goes_on=trainer.ckpt_path is not None)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let go of the stage.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            stage: Ignored.
        """
        if self._trainer is not None:
            guarded: Any = pl_module
            guarded.update_guard = guarded.update_skipped = self._trainer = None

    def state_dict(self) -> dict[str, Any]:
        """What later decisions depend on."""
        return {
            "detector": self.detector.state_dict(),
            "num_decisions": self.num_decisions,
            "rollbacks": [dict(rollback) for rollback in self.rollbacks],
            "strikes": list(self._strikes),
            "pending": self._arrived(),
            "due": self._due,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back.

        Args:
            state_dict: What `state_dict` gave.
        """
        self.detector.load_state_dict(state_dict["detector"])
        self.num_decisions = state_dict["num_decisions"]
        self.rollbacks = [dict(rollback) for rollback in state_dict["rollbacks"]]
        self._strikes = list(state_dict["strikes"])
        self._pending = deque(_Pending(step, torch.tensor(n), None) for step, n in state_dict["pending"])
        self._due = state_dict["due"]

    def _catch_up(self, trainer: L.Trainer, *, goes_on: bool) -> None:
        """Apply rollbacks that the checkpoint does not know of, and forget decisions of steps yet to be taken."""
        log = DecisionLog(trainer.default_root_dir)
        lines = trainer.strategy.broadcast(read_lines(log.path) if trainer.is_global_zero else [])
        loader: Any = trainer.train_dataloader
        for line in lines if goes_on else []:
            if line["action"] != "rollback" or line["decision"] < self.num_decisions:
                continue
            loader.skip(*line["rows"])
            scale_learning_rate(trainer, line["lr_factor"])
            self.rollbacks.append({"step": line["step"], "in_a_row": line["in_a_row"]})
            self.num_decisions = line["decision"] + 1
        if trainer.is_global_zero:
            log.keep(self.num_decisions)

    def _refuse(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not hasattr(pl_module, "update_guard"):
            raise ValueError(
                f"callbacks.spike_guard: {type(pl_module).__name__} takes several optimizer steps from a rollout, and "
                "what is guarded is one step of one item. Remove it with ~callbacks.spike_guard; "
                "model.update.max_grad_norm and model.update.target_kl bound those steps."
            )
        if trainer.strategy.handles_gradient_accumulation:
            raise ValueError(
                f"callbacks.spike_guard: {type(trainer.strategy).__name__} makes the update in an engine of its own, "
                "where it cannot be left out. Remove it with ~callbacks.spike_guard."
            )
        if not isinstance(self.policy, RollbackPolicy):
            return
        if not any(isinstance(callback, Checkpointing) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise ValueError(
                "callbacks.spike_guard.policy.kind=rollback: the run saves no checkpoints to go back to. Add "
                "callbacks.checkpointing, or use policy.kind=skip."
            )
        if not (
            hasattr(trainer.train_dataloader, "skip") and hasattr(trainer.datamodule, "samples_at_step")  # type: ignore[attr-defined]
        ):
            raise ValueError(
                "callbacks.spike_guard.policy.kind=rollback: this data cannot leave rows out. Use lmstack's data "
                "modules, or policy.kind=skip."
            )
