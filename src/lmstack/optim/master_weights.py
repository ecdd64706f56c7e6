"""Float32 copies of low-precision weights, to which small updates are added.

Micikevicius et al. 2017, arXiv:1710.03740, section 3.1. A bfloat16 number has 8 bits: an update below 1/512 of a weight
is lost when it is added to the weight itself.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lmstack.optim.muon import MuonAdamW

MASTER = "master"


class MasterWeights(torch.optim.Optimizer):
    """An optimizer whose weights and state are float32; the model's weights are its weights, rounded.

    Each parameter's state holds its copy, `master`, beside what the optimizer keeps. Without it, as in a checkpoint of
    a run that had none, copies start from the weights.

    Where `found_inf`, a float tensor, is set and 1, a step leaves everything as it is, if the optimizer inside can.

    Args:
        build: Makes the optimizer of given groups.
        groups: Parameter groups of the model's weights.
    """

    found_inf: Tensor | None = None

    def __init__(
        self, build: Callable[[list[dict[str, Any]]], torch.optim.Optimizer], groups: list[dict[str, Any]]
    ) -> None:
        copies = [group | {"params": [_copy_of(p) for p in group["params"]]} for group in groups]
        self._inside = build(copies)
        own = [
            {**inside, "params": group["params"]}
            for inside, group in zip(self._inside.param_groups, groups, strict=True)
        ]
        super().__init__(own, {})

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a step can be left out on the device; see `skip_on_device`."""
        inside = self._inside
        return isinstance(inside, MuonAdamW) or getattr(inside, "_step_supports_amp_scaling", False)

    def _pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return [
            pair
            for group, inside in zip(self.param_groups, self._inside.param_groups, strict=True)
            for pair in zip(group["params"], inside["params"], strict=True)
        ]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the copies of parameters that have a gradient, and round them.

        Args:
            closure: Computes the loss and the gradients first.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, inside in zip(self.param_groups, self._inside.param_groups, strict=True):
            inside.update({key: value for key, value in group.items() if key != "params"})  # the schedule's rate
        for parameter, master in self._pairs():
            master.grad = None if parameter.grad is None else parameter.grad.to(master.dtype)
        self._inside.found_inf = self.found_inf  # type: ignore[attr-defined]
        self._inside.step()
        for parameter, master in self._pairs():
            if master.grad is not None:
                parameter.copy_(master)
                master.grad = None
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimizer inside, with each parameter's copy."""
        state = self._inside.state_dict()
        masters = [master for _, master in self._pairs()]
        entries = {number: {**state["state"].get(number, {}), MASTER: m.detach()} for number, m in enumerate(masters)}
        groups = [
            {key: value for key, value in group.items() if key != "params"} | {"params": inside["params"]}
            for group, inside in zip(self.param_groups, state["param_groups"], strict=True)
        ]
        return {"state": entries, "param_groups": groups}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back copies and state, in float32.

        Args:
            state_dict: From `state_dict`, or from an optimizer without copies.
        """
        entries = {number: dict(entry) for number, entry in state_dict["state"].items()}
        for number, (parameter, master) in enumerate(self._pairs()):
            master.copy_(entries.get(number, {}).pop(MASTER, parameter))
        rest = {number: entry for number, entry in entries.items() if entry}
        self._inside.load_state_dict({"state": rest, "param_groups": state_dict["param_groups"]})
        for group, inside in zip(self.param_groups, self._inside.param_groups, strict=True):
            group.update({key: value for key, value in inside.items() if key != "params"})


def _copy_of(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach().to(torch.float32, copy=True))
