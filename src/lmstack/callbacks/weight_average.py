"""Exponential moving average of the weights."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from lmstack.parallel.gathering import local_part, sharded_like


class WeightAverage(L.Callback):
    """Keeps `average = decay * average + (1 - decay) * weights` after every step, in float32, and validates with it.

    A step whose update was skipped leaves the average alone.

    The average starts at the initial weights and, early in the run, uses the smaller decay (1 + step) / (10 + step), so
    that the random start is soon forgotten. It is in every checkpoint (`average.safetensors`) and is restored exactly.
    Training is unchanged by it.

    Args:
        decay: Share of the old average that is kept each step (PPO and GRPO: each rollout), in [0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay={decay}: must be in [0, 1). 0.999 averages over about 1,000 steps.")
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self._training_weights: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start at the initial weights, unless a checkpoint brought an average.

        Args:
            trainer: The trainer.
            pl_module: The stage.

        Raises:
            ValueError: Another library holds the weights.
        """
        if any(hasattr(parameter, "ds_id") for parameter in pl_module.parameters()):
            raise ValueError(
                "callbacks.weight_average: DeepSpeed's stage 3 keeps the weights to itself. Use strategy=fsdp2 or "
                "deepspeed_zero2, or remove it with ~callbacks.weight_average."
            )
        initial = {name: p.detach().float().clone() for name, p in pl_module.named_parameters()}
        self.average = {
            name: sharded_like(self.average.get(name, value), value).to(value.device) for name, value in initial.items()
        }

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the average.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            outputs: Ignored.
            batch: Ignored.
            batch_idx: Ignored.
        """
        is_skipped: Tensor | None = getattr(pl_module, "update_skipped", None)
        if is_skipped is not None and is_skipped.device.type != "cuda" and is_skipped:
            return
        decay = min(self.decay, (1 + trainer.global_step) / (10 + trainer.global_step))
        weights = dict(pl_module.named_parameters())
        averages = [local_part(self.average[name]) for name in weights]
        now = [local_part(weight.detach()).float() for weight in weights.values()]
        if is_skipped is not None and is_skipped.device.type == "cuda":  # nobody waits to know
            for average, weight in zip(averages, now, strict=True):
                average.copy_(torch.where(is_skipped, average, average.lerp(weight, 1 - decay)))
            return
        torch._foreach_lerp_(averages, now, 1 - decay)

    def on_rollback(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the average that was read back where the weights are.

        Args:
            trainer: The trainer.
            pl_module: The stage.
        """
        self.on_fit_start(trainer, pl_module)

    @torch.no_grad()
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the average in place of the weights.

        Args:
            trainer: The trainer.
            pl_module: The stage.
        """
        for name, parameter in pl_module.named_parameters():
            if name in self.average:
                self._training_weights[name] = parameter.detach().clone()
                parameter.copy_(self.average[name])

    @torch.no_grad()
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the weights back.

        Args:
            trainer: The trainer.
            pl_module: The stage.
        """
        for name, parameter in pl_module.named_parameters():
            if name in self._training_weights:
                parameter.copy_(self._training_weights.pop(name))

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the average.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            checkpoint: Lightning's dictionary, added to in place.
        """
        checkpoint["weight_average"] = self.average

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the average back.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            checkpoint: Lightning's dictionary.
        """
        self.average = dict(checkpoint.get("weight_average") or {})
