"""What every stage shares: one optimizer step from a window of micro-batches, exact resume, reported losses."""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Int
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from lmstack.data.batch import IGNORE_INDEX, TokenBatch
from lmstack.losses.language_modeling import LossSums
from lmstack.models import Transformer
from lmstack.optim.durations import to_steps
from lmstack.optim.gradient_clipping import clip_grad_norm
from lmstack.optim.optimizers import AdamWConfig, MuonConfig, build_optimizer
from lmstack.optim.schedules import Schedule, lr_multiplier


class LanguageModule(L.LightningModule, ABC):
    """A training objective around a transformer.

    One item of the train loader is one optimizer step: the list of this rank's micro-batches. The loss of the step is
    the sum of its token losses over the number of its supervised tokens, all micro-batches and all ranks, and that
    number is known before the first backward. Every random draw of a step is a function of (seed, step, rank), so
    nothing about random state has to be saved for a resume to be exact.

    Args:
        transformer: The model trained.
        optimizer: Which optimizer, with its settings.
        schedule: How the learning rate changes over the run.
        activation_checkpointing: Recompute each block's activations in the backward pass.
        compile_blocks: Run each block through `torch.compile`.
    """

    z_loss_coef: float = 0.0

    def __init__(
        self,
        transformer: Transformer,
        optimizer: AdamWConfig | MuonConfig,
        schedule: Schedule,
        *,
        activation_checkpointing: bool,
        compile_blocks: bool,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.transformer.activation_checkpointing = activation_checkpointing
        self.optimizer_config = optimizer
        self.schedule = schedule
        self.compile_blocks = compile_blocks
        self.base_seed: int | None = None
        self._validation_sums: Tensor | None = None

    @abstractmethod
    def loss_sums(self, batch: TokenBatch) -> LossSums:
        """Loss of a micro-batch, summed over its supervised tokens.

        Args:
            batch: One micro-batch of this rank.
        """

    # ---- training -----------------------------------------------------------------------------------------------

    def training_step(self, micro_batches: Sequence[TokenBatch], batch_idx: int) -> Tensor:
        """All forwards of one optimizer step, and all backwards but the last, which Lightning runs.

        Args:
            micro_batches: This rank's share of the step.
            batch_idx: Optimizer steps taken in this run.
        """
        self._seed_step(self.trainer.global_step)
        if self.trainer.global_step + 1 >= self.trainer.estimated_stepping_batches:
            self.trainer.should_stop = True  # so that the last step is followed by a validation, whatever the interval
        self.trainer.optimizers[0].zero_grad(set_to_none=True)
        num_tokens = self._sum_over_ranks(torch.stack([(b.labels != IGNORE_INDEX).sum() for b in micro_batches]).sum())
        sums: list[LossSums] = []
        for position, batch in enumerate(micro_batches):
            sums.append(self.loss_sums(batch))
            loss_sum = sums[-1].cross_entropy + sums[-1].z_loss
            # DDP and FSDP average gradients over ranks; times world_size makes that a sum.
            loss = loss_sum * self.trainer.world_size / num_tokens.clamp(min=1).to(loss_sum.dtype)
            if position < len(micro_batches) - 1:
                with torch.autocast(self.device.type, enabled=False):
                    self.trainer.strategy.backward(loss, None)
        self._log_step(sums, num_tokens)
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
        norm = clip_grad_norm(parameters, float("inf") if gradient_clip_val is None else gradient_clip_val)
        if self._is_logging_step():
            self.log("train/grad_norm", norm)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, and a schedule that is a pure function of the step."""
        optimizer = build_optimizer(self.optimizer_config, self.transformer)
        total_steps = int(self.trainer.estimated_stepping_batches)

        def multiplier(step: int) -> float:
            return lr_multiplier(
                self.schedule, step, total_steps, lambda d: to_steps(d, total_steps, self._steps_for_tokens)
            )

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, multiplier)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ---- validation ---------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Start the sums anew."""
        self._validation_sums = torch.zeros(3, dtype=torch.float64, device=self._sums_device())

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Add a batch to the sums.

        Args:
            batch: One batch of this rank.
            batch_idx: Ignored.
        """
        assert self._validation_sums is not None
        sums = self.loss_sums(batch)
        row = torch.stack([sums.cross_entropy.double(), sums.num_tokens.double(), batch.num_bytes.sum().double()])
        self._validation_sums += row.to(self._validation_sums.device)

    def on_validation_epoch_end(self) -> None:
        """Report sums over sums: nats per token, perplexity, bits per byte."""
        assert self._validation_sums is not None
        loss_sum, num_tokens, num_bytes = self._sum_over_ranks(self._validation_sums)
        loss = loss_sum / num_tokens
        values = {"val/loss": loss, "val/perplexity": loss.exp()}
        if num_bytes > 0:
            values["val/bits_per_byte"] = loss_sum / num_bytes / np.log(2)
        if self.trainer.state.fn == "fit":
            values["step"] = torch.tensor(self.trainer.global_step)
        self.log_dict({name: value.float() for name, value in values.items()})

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """As validation.

        Args:
            batch: One batch of this rank.
            batch_idx: Ignored.
        """
        self.validation_step(batch, batch_idx)

    def on_test_epoch_start(self) -> None:
        """As validation."""
        self.on_validation_epoch_start()

    def on_test_epoch_end(self) -> None:
        """As validation."""
        self.on_validation_epoch_end()

    # ---- set-up and resume --------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Fix the seed of the run, once: a resumed run keeps the one in its checkpoint."""
        if self.base_seed is None:
            self.base_seed = torch.initial_seed()
        if self.compile_blocks:
            for block in self.transformer.blocks:
                block.compile()

    def on_train_start(self) -> None:
        """Put the loader where the checkpoint left it.

        `configure_optimizers` asks for the number of steps, for which Lightning sets the loader up before it has read
        the loader's state from the checkpoint; it then never looks again.
        """
        self.trainer.fit_loop._load_combined_loader_states()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what makes the weights loadable without this class.

        Args:
            checkpoint: Lightning's dictionary, added to in place.
        """
        tokenizer = getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None)
        checkpoint["lmstack"] = {
            "base_seed": self.base_seed,
            "transformer": self.transformer.config.to_dict(),
            "tokenizer": tokenizer,
            "tokens_seen": self.tokens_at_step(self.trainer.global_step),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back the seed, and refuse weights of another shape by name.

        Args:
            checkpoint: Lightning's dictionary.

        Raises:
            ValueError: The checkpoint's transformer differs from the configured one.
        """
        saved, ours = checkpoint["lmstack"]["transformer"], self.transformer.config.to_dict()
        different = [name for name in ours if saved.get(name) != ours[name] and name != "initialization"]
        if different:
            name = different[0]
            raise ValueError(
                f"model.transformer.{name}={ours[name]!r}, but the checkpoint was trained with {saved.get(name)!r}. "
                "Resume with the run's own config, or start a new run from these weights with model.init_from."
            )
        self.base_seed = checkpoint["lmstack"]["base_seed"]

    def tokens_at_step(self, step: int) -> int:
        """Training tokens consumed after so many steps, all ranks; 0 when the data module does not count them.

        Args:
            step: Optimizer steps.
        """
        count = getattr(getattr(self.trainer, "datamodule", None), "tokens_at_step", None)
        return int(count(step)) if count else 0

    # ---- private ------------------------------------------------------------------------------------------------

    def _seed_step(self, step: int) -> None:
        words = np.random.SeedSequence((self.base_seed or 0, step, self.global_rank)).generate_state(3, np.uint32)
        torch.manual_seed(int(words[0]) << 32 | int(words[1]))
        random.seed(int(words[2]))
        np.random.seed(int(words[2]))

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(value, reduce_op="sum") if self.trainer.world_size > 1 else value

    def _steps_for_tokens(self, tokens: int) -> int:
        count = getattr(getattr(self.trainer, "datamodule", None), "steps_for_tokens", None)
        if count is None:
            raise ValueError("A duration in tokens needs a data module with steps_for_tokens. Give it in steps.")
        return int(count(tokens))

    def _sums_device(self) -> torch.device:
        # float64 is missing on some accelerators (MPS); CPU and CUDA have it.
        return self.device if self.device.type in ("cpu", "cuda") else torch.device("cpu")

    def _is_logging_step(self) -> bool:
        interval: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return (self.trainer.global_step + 1) % interval == 0

    def _log_step(self, sums: list[LossSums], num_tokens: Int[Tensor, ""]) -> None:
        if not self._is_logging_step():
            return
        totals = self._sum_over_ranks(
            torch.stack([torch.stack([s.cross_entropy, s.z_loss]) for s in sums]).sum(0).detach()
        )
        loss, z_loss = (totals / num_tokens.clamp(min=1)).unbind()
        self.log("train/loss", loss, prog_bar=True)
        if self.z_loss_coef:
            self.log("train/z_loss", z_loss)
        step = self.trainer.global_step + 1
        self.log("train/tokens_seen", float(self.tokens_at_step(step)))
        # Lightning counts from 0 unless told: the row of a step says how many steps had been taken after it.
        self.log("step", float(step))
