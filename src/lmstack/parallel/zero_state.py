"""Weights and optimizer state that DeepSpeed keeps in flat pieces: made whole, and cut again."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.optim import Optimizer

from lmstack.parallel.optimizer_state import KERNEL_OPTIONS, OptimizerState, by_name


class ZeroState:
    """The way from DeepSpeed's pieces to the state of one process, and back. One parameter at a time is whole.

    Args:
        module: What is trained.
        zero: DeepSpeed's optimizer.
        optimizer: The one inside of it, whose groups hold flat pieces by now.
        groups: The parameters of its groups, as they were.
        names: Of all parameters.
    """

    def __init__(
        self,
        module: nn.Module,
        zero: Any,
        optimizer: Optimizer,
        groups: Sequence[Sequence[nn.Parameter]],
        names: Mapping[nn.Parameter, str],
    ) -> None:
        self.module, self.zero, self.optimizer = module, zero, optimizer
        self.groups, self.names = groups, names
        self.weights_are_cut = hasattr(groups[0][0], "ds_id")

    # ---- weights ----------------------------------------------------------------------------------------------------

    def weights(self, *, keep: bool) -> dict[str, Tensor]:
        """`state_dict` of the module. Every process must call it.

        Args:
            keep: Whether this process wants the result; the others get nothing.
        """
        state = self.module.state_dict()
        for parameter, name in self.names.items() if self.weights_are_cut else ():
            with self._whole(parameter):
                if keep:
                    state[name] = parameter.detach().cpu().clone()
        return state if keep else {}

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Put whole weights in place.

        Args:
            weights: By name, the same on every process.
        """
        for parameter, name in self.names.items():
            with self._whole(parameter, may_change=True):
                parameter.copy_(weights[name])
        self.zero.refresh_fp32_params()

    def _whole(self, parameter: nn.Parameter, *, may_change: bool = False) -> AbstractContextManager[Any]:
        if not self.weights_are_cut:
            return nullcontext()
        import deepspeed

        gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
            [parameter], modifier_rank=0 if may_change else None
        )
        return gathered

    def trained_parts(self) -> dict[str, Tensor]:
        """The trained weights, those that are cut as flat tensors sharded over the processes."""
        trained = {parameter: self.names[parameter] for group in self.groups for parameter in group}
        if not self.weights_are_cut:
            return {name: parameter.detach() for parameter, name in trained.items()}
        from deepspeed.utils import safe_get_local_fp32_param
        from torch.distributed.tensor import DTensor, Shard

        device = torch.device(self.zero.device)
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        local = {name: safe_get_local_fp32_param(parameter).to(device) for parameter, name in trained.items()}
        return {name: DTensor.from_local(piece, mesh, [Shard(0)], run_check=False) for name, piece in local.items()}

    def whole_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """The gradients of the coming step, each whole while it is looked at. Every process must go through all."""
        from deepspeed.utils import safe_get_full_grad

        for group in self.groups:
            for parameter in group:
                yield self.names[parameter], safe_get_full_grad(parameter)

    # ---- optimizer --------------------------------------------------------------------------------------------------

    def optimizer_state(self, *, keep: bool) -> OptimizerState:
        """The state of one process that has the whole model. Every process must call it.

        Args:
            keep: Whether this process wants the result; the others get nothing.
        """
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link()
        state: dict[int, dict[str, Tensor]] = {}
        groups, first = [], 0
        for index, parameters in enumerate(self.groups):
            numbers = list(range(first, first + len(parameters)))
            first += len(parameters)
            groups.append(self.optimizer.param_groups[index] | {"params": numbers})
            for number, parameter in zip(numbers, parameters, strict=True):
                for key, value in self.optimizer.state.get(self._flat(index, parameter), {}).items():
                    whole = value if value.dim() == 0 else safe_get_full_optimizer_state(parameter, key)
                    if keep:
                        state.setdefault(number, {})[key] = whole.cpu().clone()
        return {"state": state, "param_groups": groups} if keep else {}

    def load_optimizer_state(self, whole: OptimizerState) -> None:
        """Take this process's part.

        Args:
            whole: Of one process that has the whole model.
        """
        entries = by_name(whole)
        saved_groups = {group["name"]: group for group in whole["param_groups"]}
        for index, parameters in enumerate(self.groups):
            group = self.optimizer.param_groups[index]
            kept = {key: group[key] for key in ("params", "param_names", *KERNEL_OPTIONS) if key in group}
            group.update(saved_groups[group["name"]] | kept)
            for flat in {self._flat(index, parameter): None for parameter in parameters}:
                example = entries.get(self.names[parameters[0]], {})
                self.optimizer.state[flat] = {
                    key: value.clone() if value.dim() == 0 else torch.zeros_like(flat) for key, value in example.items()
                }
        self._link()
        for parameter, name in self.names.items():
            for key, value in entries.get(name, {}).items():
                if value.dim() > 0:
                    self._set(parameter, key, value)

    def _link(self) -> None:
        """Tell DeepSpeed's parameters where their state is: it does so after the step of the first group only."""
        if not self.weights_are_cut:
            self.zero._hp_optimizer_states_linked = False
            self.zero._lazy_init_hp_params_optimizer_state()

    def _flat(self, group: int, parameter: nn.Parameter) -> Tensor:
        """The piece of the optimizer that a parameter is in."""
        if self.weights_are_cut:
            sub_group, _, _ = self.zero.grad_position[self.zero.get_param_id(parameter)]
            pieces = self.zero.fp32_partitioned_groups_flat[sub_group]
        else:
            pieces = self.zero.single_partition_of_fp32_groups[group]
        piece: Tensor = pieces
        return piece

    def _set(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if not self.weights_are_cut:
            safe_set_full_optimizer_state(parameter, value, key)
            return
        # Not the one for whole values, which fails where a size is not a multiple of the number of processes.
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        part = value.new_zeros(size)
        own = value.flatten()[dist.get_rank() * size :][:size]
        part[: own.numel()] = own
        safe_set_local_optimizer_state(parameter, part, key)
