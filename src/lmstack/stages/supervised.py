"""One optimizer step from a window of micro-batches: the loss of the step is a sum over a count, both of all ranks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lmstack.optim.gradient_clipping import clip_grad_norm
from lmstack.optim.skipping import skip_coming_step
from lmstack.stages.base import LanguageModule


@runtime_checkable
class Countable(Protocol):
    """A micro-batch that knows how much of it counts."""

    @property
    def num_supervised(self) -> Int[Tensor, ""]:
        """What the loss is averaged over: labels, or prompts."""
        ...


class ObjectiveSums(NamedTuple):
    """Sums over what counts in a micro-batch.

    Attributes:
        objective: What is minimised; the step divides it by the count of all micro-batches and ranks.
        reported: What is logged under these names, divided by the same count.
    """

    objective: Float[Tensor, ""]
    reported: dict[str, Float[Tensor, ""]]


class SupervisedModule(LanguageModule, ABC):
    """A stage whose loss is an average over supervised items.

    One item of the train loader is one optimizer step: the list of this rank's micro-batches. The loss of the step is
    the sum of its losses over the number of its supervised tokens (or prompts), all micro-batches and all ranks, and
    that number is known before the first backward.
    """

    update_guard: Callable[[Float[Tensor, ""], Float[Tensor, ""]], Bool[Tensor, ""]] | None = None
    """Says of a step, by its loss and gradient norm over all ranks, whether its update is left out."""

    update_skipped: Bool[Tensor, ""] | None = None
    """What it said of the last step."""

    after_step: Callable[[], None] | None = None
    """Called once, after all that belongs to the present step."""

    @abstractmethod
    def loss_sums(self, batch: Any) -> ObjectiveSums:
        """Loss of a micro-batch, summed over what counts in it.

        Args:
            batch: One micro-batch of this rank.
        """

    def prepare_step(self, micro_batches: Sequence[Any]) -> None:
        """What a loss needs to know of the whole step before its first forward: nothing, for most.

        Args:
            micro_batches: This rank's share of the step.
        """

    def training_step(self, micro_batches: Sequence[Countable], batch_idx: int) -> Tensor:
        """All forwards of one optimizer step, and all backwards but the last, which Lightning runs.

        Args:
            micro_batches: This rank's share of the step.
            batch_idx: Optimizer steps taken in this run.
        """
        self._seed_step(self.trainer.global_step)
        if self.trainer.global_step + 1 >= self.trainer.estimated_stepping_batches:
            self.trainer.should_stop = True  # so that the last step is followed by a validation, whatever the interval
        self.trainer.optimizers[0].zero_grad(set_to_none=True)
        count = self._sum_over_ranks(torch.stack([batch.num_supervised for batch in micro_batches]).sum())
        self.prepare_step(micro_batches)
        num_shares = self.data_rank.world_size
        self._losses: list[Tensor] = []

        def share(objective: Tensor) -> Tensor:
            # Strategies average gradients over ranks with different data; times their number makes that a sum.
            own = objective * num_shares / count.clamp(min=1).to(objective.dtype)
            self._losses.append(own.detach())
            return own

        # A pipeline orders forwards and backwards itself, and tells all its processes what the last layers' loss was.
        run_window = getattr(self.trainer.strategy, "run_window", None)
        reported, loss = (run_window or self._run_window)(micro_batches, share)
        if run_window is not None:
            self._losses = [loss]
        self._log_step(reported, count)
        return loss

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: Lightning calls this after `training_step`, whose backwards must be kept; it zeroes them itself.

        Args:
            *args: Ignored.
            **kwargs: Ignored.
        """

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the global norm, right for sharded gradients too, and log it unclipped.

        Args:
            optimizer: Whose parameters.
            gradient_clip_val: Largest global norm; None measures only.
            gradient_clip_algorithm: Only `norm` is offered.

        Raises:
            ValueError: Another algorithm was asked for.
        """
        if gradient_clip_algorithm not in (None, "norm"):
            raise ValueError(f"trainer.gradient_clip_algorithm={gradient_clip_algorithm!r}: lmstack clips by 'norm'.")
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        strategy: Any = self.trainer.strategy
        limit = float("inf") if gradient_clip_val is None else gradient_clip_val
        if hasattr(strategy, "clip_grad_norm"):  # gradients are kept in an engine's own buffers
            norm = strategy.clip_grad_norm(limit)
        else:
            norm = clip_grad_norm(parameters, limit, elsewhere=getattr(strategy, "gradients_elsewhere", None))
        if self._is_logging_step():
            self.log("train/grad_norm", norm)
        if self.update_guard is not None:
            own = torch.stack([torch.stack(self._losses).sum().float(), norm.to(self.device)])
            # Averaged, so that no rank decides by a bit that the others do not have.
            loss, norm = (self._sum_over_ranks(own) / self.data_rank.world_size).unbind()
            self.update_skipped = self.update_guard(loss, norm)
            if hasattr(strategy, "skip_coming_step"):
                strategy.skip_coming_step(self.update_skipped)
            else:
                skip_coming_step(optimizer, self.update_skipped)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Do what was put off until now.

        Args:
            outputs: Ignored.
            batch: Ignored.
            batch_idx: Ignored.
        """
        if self.after_step is not None:
            act, self.after_step = self.after_step, None
            act()

    def _run_window(
        self, micro_batches: Sequence[Any], share: Callable[[Tensor], Tensor]
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        reported: list[dict[str, Tensor]] = []
        for position, batch in enumerate(micro_batches):
            sums = self.loss_sums(batch)
            reported.append(sums.reported)
            loss = share(sums.objective)
            if position < len(micro_batches) - 1:
                with torch.autocast(self.device.type, enabled=False):
                    self.trainer.strategy.backward(loss, None)
        return reported, loss

    def _log_step(self, reported: list[dict[str, Tensor]], count: Int[Tensor, ""]) -> None:
        if not self._is_logging_step():
            return
        names = list(reported[0])
        sums = torch.stack([torch.stack([sums[name].detach() for name in names]) for sums in reported]).sum(0)
        for name, value in zip(names, self._sum_over_ranks(sums) / count.clamp(min=1), strict=True):
            self.log(f"train/{name}", value, prog_bar=name == "loss")
        step = self.trainer.global_step + 1
        self.log("train/tokens_seen", float(self.tokens_at_step(step)))
        # Lightning counts from 0 unless told: the row of a step says how many steps had been taken after it.
        self.log("step", float(step))
