"""A checkpoint without its large tensors, which go to shards; and put together again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lmstack.models.shard_files import AVERAGE, MODULE, OPTIMIZER, read_whole
from lmstack.parallel.optimizer_state import by_name

Checkpoint = dict[str, Any]


def without_tensors(checkpoint: Checkpoint) -> tuple[Checkpoint, dict[str, Tensor]]:
    """What is small, and the tensors of module, optimizer and weight average by name.

    Args:
        checkpoint: Lightning's dictionary, with what this process holds; left as it is.
    """
    tensors = {MODULE + name: tensor for name, tensor in checkpoint["state_dict"].items()}
    small = checkpoint | {"state_dict": {}}
    if "weight_average" in checkpoint:
        tensors |= {AVERAGE + name: tensor for name, tensor in small.pop("weight_average").items()}
    states = []
    for state in checkpoint.get("optimizer_states", []):
        for name, entry in by_name(state).items():
            tensors |= {f"{OPTIMIZER}{name}.{key}": value for key, value in entry.items() if value.dim() > 0}
        scalars = {
            number: {key: value for key, value in entry.items() if value.dim() == 0}
            for number, entry in state["state"].items()
        }
        states.append(state | {"state": scalars})
    if states:
        small["optimizer_states"] = states
    return small, tensors


def with_tensors(checkpoint: Checkpoint, shards: Path) -> Checkpoint:
    """The checkpoint of one process that has everything.

    Args:
        checkpoint: What is small.
        shards: The folder with the rest.
    """
    whole = checkpoint | {"state_dict": read_whole(shards, MODULE)}
    if average := read_whole(shards, AVERAGE):
        whole["weight_average"] = average
    entries = _entries(read_whole(shards, OPTIMIZER))
    for state in whole.get("optimizer_states", []):
        for group in state["param_groups"]:
            for number, name in zip(group["params"], group["param_names"], strict=True):
                if name in entries:
                    state["state"].setdefault(number, {}).update(entries[name])
    return whole


def _entries(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    entries: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        name, _, key = path.rpartition(".")
        entries.setdefault(name, {})[key] = tensor
    return entries
