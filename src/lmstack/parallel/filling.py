"""Values for a model that is cut already: each process keeps its part, and one tensor at a time is whole."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lmstack.models.shard_files import MODULE, OPTIMIZER, names_in, read_shards_into
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


def fill_from_shards(module: nn.Module, folder: Path) -> None:
    """Read this process's part of every weight.

    Args:
        module: Changed in place.
        folder: Of the shards.
    """
    read_shards_into(folder, {MODULE + name: tensor for name, tensor in module.state_dict().items()})


def state_from_shards(small: OptimizerState, optimizer: Optimizer, folder: Path) -> OptimizerState:
    """This process's part of an optimizer's state.

    Args:
        small: Groups, and what is not a tensor of a parameter's shape.
        optimizer: Over some of the parameters, sharded or not.
        folder: Of the shards.
    """
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
