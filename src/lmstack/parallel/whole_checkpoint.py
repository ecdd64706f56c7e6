"""The checkpoint of one process from those of all: parts of tensors put together, and layers of a pipeline."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from lmstack.parallel.gathering import gathered
from lmstack.parallel.layout import Layout
from lmstack.parallel.optimizer_state import merged

Checkpoint = dict[str, Any]
_GATHERED = ("state_dict", "optimizer_states", "weight_average")


@dataclass(frozen=True)
class WholeModel:
    """What the model was before it was cut.

    Attributes:
        parameter_names: In the order of `named_parameters`.
        state_names: In the order of `state_dict`.
    """

    parameter_names: Sequence[str]
    state_names: Sequence[str]

    def checkpoint(self, part: Checkpoint, mesh: DeviceMesh, layout: Layout) -> Checkpoint:
        """Everything, in the first process; every process must call it, and the others get what is of no use.

        Args:
            part: Of this process.
            mesh: With the dimensions of the layout.
            layout: How the processes share the model.
        """
        rank = dist.get_rank()
        place = layout.coordinates(rank)
        is_first_of_stage = place.replicas == place.shards == place.tensor == 0
        part = gathered(part, keep=is_first_of_stage)
        if not is_first_of_stage:
            return part
        parts = [{name: part[name] for name in _GATHERED if name in part}]
        if layout.pipeline > 1:
            own, parts = parts[0], [{} for _ in range(layout.pipeline)]
            dist.gather_object(own, parts if rank == 0 else None, group=mesh["pipeline"].get_group(), group_dst=0)
        return part | self._joined(parts) if rank == 0 else part

    def _joined(self, parts: Sequence[Checkpoint]) -> Checkpoint:
        joined: Checkpoint = {}
        for name in parts[0]:
            if name == "optimizer_states":
                each = zip(*(part[name] for part in parts), strict=True)
                joined[name] = [merged(states, self.parameter_names) for states in each]
            else:
                held = {key: value for part in reversed(parts) for key, value in part[name].items()}
                joined[name] = {key: held[key] for key in self.state_names if key in held}
        return joined
