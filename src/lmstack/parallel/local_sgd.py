"""Processes that train on their own for a while and then agree: local SGD, DiLoCo."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.strategy import Strategy
from torch import Tensor
from torch.optim import Optimizer

from lmstack.parallel.gathering import copy_from_first

_STATE = "local_sgd"


class LocalSGD(DDPStrategy):
    """Each process takes `period` steps with its own optimizer; then an outer optimizer takes the mean way back from
    where they have come to, anchor - weights, as its gradient, and all go on from the anchor it has moved.

    DiLoCo is an outer Nesterov momentum (Douillard et al. 2023, arXiv:2311.08105, algorithm 1); `outer_lr=1` without
    momentum averages weights (local SGD, Stich 2018, arXiv:1805.09767). Weights and gradients are exchanged once in
    `period` steps; only the count of supervised tokens is in every one.

    A checkpoint's weights are the mean of the processes'. The same number of processes goes on exactly, each from its
    own weights; another number or strategy goes on from the mean, and from the first process's optimizer.

    Args:
        period: Steps between two exchanges, at least 1.
        outer_lr: Learning rate of the outer optimizer, above 0.
        outer_momentum: Its Nesterov momentum, in [0, 1).
    """

    def __init__(self, *, period: int = 50, outer_lr: float = 0.7, outer_momentum: float = 0.9) -> None:
        super().__init__()
        if period < 1:
            raise ValueError(f"trainer.strategy.period={period}: must be at least 1. 50 to 500 are usual.")
        if not outer_lr > 0.0 or not 0.0 <= outer_momentum < 1.0:
            raise ValueError(
                f"trainer.strategy.outer_lr={outer_lr}, outer_momentum={outer_momentum}: above 0, and in [0, 1). "
                "0.7 and 0.9 are DiLoCo's; 1 and 0 average."
            )
        self.period = period
        self.outer_lr, self.outer_momentum = outer_lr, outer_momentum
        self.parameters: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self.outer: Optimizer | None = None
        self.num_steps = 0
        self._loaded: dict[str, Any] | None = None

    # ---- training ---------------------------------------------------------------------------------------------------

    def configure_ddp(self) -> None:
        """No wrapper: start every process at the first one's weights, and drop the anchor there."""
        module = self.lightning_module
        assert module is not None
        if not module.automatic_optimization:
            raise ValueError(f"{type(module).__name__} takes its own optimizer steps. Use strategy=ddp.")
        if getattr(getattr(module, "optimizer_config", None), "master_weights", False):
            raise ValueError(
                "model.optimizer.master_weights=true with local_sgd: an exchange would change weights and not their "
                "float32 copies. Use trainer.precision=bf16-mixed, or strategy=ddp."
            )
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        copy_from_first([p.data for p in module.parameters()], self.root_device)
        self.anchor = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.outer = torch.optim.SGD(
            list(self.anchor.values()),
            lr=self.outer_lr,
            momentum=self.outer_momentum,
            nesterov=self.outer_momentum > 0.0,
        )

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """A step of this process; every `period` of them, an exchange.

        Args:
            optimizer: The inner optimizer.
            closure: Computes the gradients.
            model: As in Lightning.
            **kwargs: For the optimizer.
        """
        output = super().optimizer_step(optimizer, closure, model, **kwargs)
        self.num_steps += 1
        if self.num_steps % self.period == 0:
            self._exchange()
        return output

    @torch.no_grad()
    def _exchange(self) -> None:
        assert self.outer is not None
        for name, anchor in self.anchor.items():
            anchor.grad = (anchor - self.parameters[name]).div_(self.world_size)
            dist.all_reduce(anchor.grad)
        self.outer.step()
        self.outer.zero_grad()
        for name, anchor in self.anchor.items():
            self.parameters[name].copy_(anchor)

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write the mean of the weights, and what each process needs to go on.

        Args:
            checkpoint: Of this process.
            filepath: The folder.
            storage_options: For the writer.
        """
        assert self.outer is not None
        own = {
            "weights": {name: p.detach().cpu() for name, p in self.parameters.items()},
            "optimizer_states": checkpoint.get("optimizer_states", []),
        }
        parts: list[Any] | None = [None] * self.world_size if self.is_global_zero else None
        dist.gather_object(own, parts)
        if parts is None:
            return
        for name in self.parameters:
            mean = torch.stack([part["weights"][name].double() for part in parts]).mean(0)
            checkpoint["state_dict"][name] = mean.to(self.parameters[name].dtype)
        checkpoint[_STATE] = {
            "processes": parts,
            "anchor": dict(self.anchor),
            "outer": self.outer.state_dict(),
            "num_steps": self.num_steps,
        }
        self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read it, and keep what this strategy wrote, if it did.

        Args:
            checkpoint_path: The folder.
            weights_only: As Lightning means it.
        """
        checkpoint = super().load_checkpoint(checkpoint_path, weights_only)
        self._loaded = checkpoint.get(_STATE)
        return checkpoint

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's own where there is one, and what else it needs to go on: also in a rollback.

        Args:
            checkpoint: As it was saved.
        """
        own = self._own()
        Strategy.load_optimizer_state_dict(self, checkpoint if own is None else own)
        self._restore()
        self._loaded = None  # it has the state of all processes

    @torch.no_grad()
    def _restore(self) -> None:
        if self._loaded is None:
            return
        assert self.outer is not None
        for name, anchor in self.anchor.items():
            anchor.copy_(self._loaded["anchor"][name])
        self.outer.load_state_dict(
            self.outer.state_dict() | {"state": self._loaded["outer"]["state"]}  # the rates are this run's
        )
        self.num_steps = self._loaded["num_steps"]
        if (own := self._own()) is not None:
            for name, parameter in self.parameters.items():
                parameter.copy_(own["weights"][name])

    def _own(self) -> Mapping[str, Any] | None:
        """What this process saved; None where another number of processes did."""
        if self._loaded is None or len(self._loaded["processes"]) != self.world_size:
            return None
        own: Mapping[str, Any] = self._loaded["processes"][self.global_rank]
        return own
