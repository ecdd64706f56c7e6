"""Values for a model that is cut already: each process keeps its part, and one tensor at a time is whole."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lmstack.models.shard_files import AVERAGE, MODULE, OPTIMIZER, SHARDS, names_in, read_shards_into, read_whole
from lmstack.parallel.gathering import sharded_like
from lmstack.parallel.optimizer_state import OptimizerState, fitted


@torch.no_grad()
def fill(module: nn.Module, values: Iterable[tuple[str, Tensor]]) -> None:
    """Take this process's part of every value.

    Args:
        module: Changed in place.
        values: Names as in `state_dict`, and whole tensors, the same on every process; those that are not here are
            passed over.

    Raises:
        ValueError: A value is missing.
    """
    own = module.state_dict()
    missing = set(own)
    for name, value in values:
        if name in own:
            own[name].copy_(sharded_like(value, own[name]))
            missing.discard(name)
    if missing:
        raise ValueError(f"{min(missing)!r} is missing ({len(missing)} in all): the weights are of another model.")


class Stored:
    """A checkpoint that is about to be loaded into a model that is cut: whole tensors, or the folder of their shards.

    Args:
        io: Reads checkpoints.
        path: Of the checkpoint.
        weights_only: As Lightning means it.
    """

    def __init__(self, io: Any, path: str | Path, weights_only: bool | None = None) -> None:
        folder = Path(path) / SHARDS
        self.shards = folder if folder.is_dir() else None
        self.checkpoint: dict[str, Any]
        if self.shards is None:
            self.checkpoint = io.load_checkpoint(path, weights_only=weights_only)
            return
        self.checkpoint = io.load_without_shards(path)
        if average := read_whole(folder, AVERAGE):
            self.checkpoint["weight_average"] = average

    def fill(self, module: nn.Module) -> None:
        """Give a module this process's part of every weight.

        Args:
            module: Changed in place.
        """
        if self.shards is None:
            fill(module, self.checkpoint["state_dict"].items())
            return
        read_shards_into(self.shards, {MODULE + name: tensor for name, tensor in module.state_dict().items()})

    def optimizer_state(self, whole: OptimizerState, optimizer: Optimizer) -> OptimizerState:
        """This process's part of an optimizer's state.

        Args:
            whole: Of the checkpoint.
            optimizer: Over some of the parameters, sharded or not.
        """
        return fitted(whole, optimizer) if self.shards is None else _from_shards(whole, optimizer, self.shards)


def _from_shards(small: OptimizerState, optimizer: Optimizer, folder: Path) -> OptimizerState:
    part = fitted(small, optimizer)
    stored = names_in(folder, OPTIMIZER)
    wanted: dict[str, Tensor] = {}
    for live, group in zip(optimizer.param_groups, part["param_groups"], strict=True):
        for number, name, parameter in zip(group["params"], group["param_names"], live["params"], strict=True):
            for key in stored.get(name, ()):
                entry: dict[str, Any] = part["state"].setdefault(number, {})
                entry[key] = wanted[f"{OPTIMIZER}{name}.{key}"] = torch.zeros_like(parameter.detach())
    read_shards_into(folder, wanted)
    return part
