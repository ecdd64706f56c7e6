"""How large gradients, weights and updates are, part by part."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn


class TrainingDynamics(L.Callback):
    """Logs, every so often, for each part of the model: the gradient's norm, the weights' norm, and the last update's.

    A healthy run's `dynamics/update_ratio/<part>` (update over weights) sits near 1e-3 of its learning rate's order; a
    part whose ratio is far from the others' has a wrong learning rate or initialization. Gradients are taken before
    clipping.

    Args:
        every_n_steps: Steps between two measurements, a multiple of `trainer.log_every_n_steps`; each copies the
            weights once.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self._before: dict[str, Tensor] = {}
        self._norms: dict[str, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the interval.

        Args:
            trainer: The trainer.
            pl_module: The stage.

        Raises:
            ValueError: Its steps would not all be logged.
        """
        interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.every_n_steps % interval:
            raise ValueError(
                f"training_dynamics.every_n_steps={self.every_n_steps} is not a multiple of "
                f"trainer.log_every_n_steps={interval}: some measurements would not be written."
            )

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Measure gradients, and keep the weights for comparison.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            optimizer: Ignored.
        """
        if (trainer.global_step + 1) % self.every_n_steps:
            return
        self._before = {name: weight.clone() for name, weight in _trained(trainer, pl_module).items()}
        own_gradients = getattr(trainer.strategy, "whole_gradients", None)
        gradients = own_gradients() if own_gradients else _gradients(pl_module)
        self._norms = {f"gradient_norm/{part}": norm for part, norm in part_norms(gradients).items()}

    def on_rollback(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget weights of steps that are taken again.

        Args:
            trainer: The trainer.
            pl_module: The stage.
        """
        self._before, self._norms = {}, {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare with the weights kept.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            outputs: Ignored.
            batch: Ignored.
            batch_idx: Ignored.
        """
        if not self._before:
            return
        weights = _trained(trainer, pl_module)
        weight_norms = part_norms(weights.items())
        update_norms = part_norms((name, weight - self._before[name]) for name, weight in weights.items())
        for part, norm in update_norms.items():
            self._norms[f"weight_norm/{part}"] = weight_norms[part]
            self._norms[f"update_norm/{part}"] = norm
            self._norms[f"update_ratio/{part}"] = norm / weight_norms[part].clamp(min=1e-12)
        measured = {f"dynamics/{name}": float(norm) for name, norm in self._norms.items()}
        for logger in trainer.loggers:  # self.log would repeat old values at the logging steps in between
            logger.log_metrics(measured, step=trainer.global_step)
        self._before, self._norms = {}, {}


def part_of(parameter_name: str) -> str:
    """The part of the model a parameter belongs to: a block's `attention`, `feed_forward` or norms, or what is outside.

    Args:
        parameter_name: As in `named_parameters`, such as `transformer.blocks.3.attention.qkv.weight`.
    """
    words = parameter_name.removeprefix("transformer.").split(".")
    return ".".join(words[:3]) if words[0] == "blocks" else words[0]


def part_norms(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Euclidean norm of each part: the root of the sum of its tensors' squared norms.

    Args:
        tensors: Parameter names and tensors.
    """
    norms: dict[str, list[Tensor]] = defaultdict(list)
    for name, tensor in tensors:
        norm = torch.linalg.vector_norm(tensor, dtype=torch.float32)
        norms[part_of(name)].append(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
    return {part: torch.linalg.vector_norm(torch.stack(values)) for part, values in norms.items()}


def _trained(trainer: L.Trainer, module: nn.Module) -> dict[str, Tensor]:
    """What is trained; a strategy that keeps weights in an engine of its own says where."""
    own_parts = getattr(trainer.strategy, "trained_parts", None)
    if own_parts:
        parts: dict[str, Tensor] = own_parts()
        return parts
    return {name: parameter.detach() for name, parameter in module.named_parameters() if parameter.requires_grad}


def _gradients(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            yield name, parameter.grad
