"""Optimizer states as one process would have them, and their way back to processes that hold a part.

The common form is that of one process which holds the whole model: `state` by number, numbers by the order of
`param_names` in the groups `hidden`, `embeddings`, `head`, `vectors`.
"""

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from lmstack.optim.parameter_groups import EMBEDDING_GROUP, HEAD_GROUP, HIDDEN_GROUP, VECTOR_GROUP
from lmstack.parallel.gathering import sharded_like

OptimizerState = dict[str, Any]
_ORDER = (HIDDEN_GROUP, EMBEDDING_GROUP, HEAD_GROUP, VECTOR_GROUP)
KERNEL_OPTIONS = ("fused", "foreach")


def by_name(state: OptimizerState) -> dict[str, Any]:
    """The entry of each parameter that has one.

    Args:
        state: From `Optimizer.state_dict`, of groups that name their parameters.
    """
    return {
        name: state["state"][number]
        for group in state["param_groups"]
        for number, name in zip(group["params"], group["param_names"], strict=True)
        if number in state["state"]
    }


def merged(parts: Sequence[OptimizerState], names: Sequence[str]) -> OptimizerState:
    """The state of the whole model from those of its parts; of a parameter that several hold, the first one's.

    Args:
        parts: Each with its own parameters, in tensors that are whole.
        names: All parameters of the model, in its order.
    """
    entries: dict[str, Any] = {}
    for part in reversed(parts):
        entries |= by_name(part)
    groups: dict[str, dict[str, Any]] = {}
    members: dict[str, set[str]] = {}
    for part in parts:
        for group in part["param_groups"]:
            groups.setdefault(group["name"], group)
            members.setdefault(group["name"], set()).update(group["param_names"])
    numbers: dict[str, int] = {}
    whole_groups = []
    for group_name in sorted(groups, key=_ORDER.index):
        own = [name for name in names if name in members[group_name]]
        numbers |= {name: len(numbers) + place for place, name in enumerate(own)}
        whole = groups[group_name] | {"params": [numbers[name] for name in own], "param_names": own}
        if "fused" in whole:
            whole["fused"] = True  # what one process with the whole model takes
        whole_groups.append(whole)
    return {"state": {numbers[name]: entry for name, entry in entries.items()}, "param_groups": whole_groups}


def fitted(whole: OptimizerState, optimizer: Optimizer) -> OptimizerState:
    """The part of a whole model's state that belongs to an optimizer, cut as its parameters are.

    Args:
        whole: In the common form.
        optimizer: Over some of the parameters, sharded or not.
    """
    entries = by_name(whole)
    saved_groups = {group["name"]: group for group in whole["param_groups"]}
    own = optimizer.state_dict()
    state, groups = {}, []
    for live, group in zip(optimizer.param_groups, own["param_groups"], strict=True):
        kept = {key: group[key] for key in ("params", "param_names", *KERNEL_OPTIONS) if key in group}
        groups.append(saved_groups[group["name"]] | kept)
        for number, name, parameter in zip(group["params"], group["param_names"], live["params"], strict=True):
            if name in entries:
                state[number] = {
                    key: sharded_like(value, parameter) if hasattr(value, "shape") else value
                    for key, value in entries[name].items()
                }
    return {"state": state, "param_groups": groups}
