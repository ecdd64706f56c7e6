"""Muon for hidden matrices and AdamW for everything else, as one optimizer.

Torch's own Muon and AdamW do the arithmetic. Orthogonalizing matrices of one shape together gave no dependable gain on
a CPU: 0.5 to 1.6 times torch's speed for 256x256, 768x256, 1024x256 and 768x768, by shape and number of threads.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer whose groups say, by `algorithm`, whether Muon or AdamW updates them.

    Groups and state are those of a Muon and an AdamW inside, not copies, so that learning-rate schedulers, `state_dict`
    and `zero_grad` need to know nothing of the two.

    Where `found_inf`, a float tensor, is set and 1, a step leaves weights and state as they are; see `skip_on_device`.

    Args:
        groups: Parameter groups with `algorithm`, `muon` or `adamw`, and the options of that optimizer.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})
        self._build_parts()

    found_inf: Tensor | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._build_parts()

    def _build_parts(self) -> None:
        """Optimizers over the present group dictionaries and state; loading and copying replace both."""
        groups: dict[str, list[dict[str, Any]]] = {"muon": [], "adamw": []}
        for group in self.param_groups:
            groups[group["algorithm"]].append(group)
        self._parts: list[torch.optim.Optimizer] = []
        if groups["muon"]:
            self._parts.append(torch.optim.Muon(groups["muon"]))
        if groups["adamw"]:
            self._parts.append(torch.optim.AdamW(groups["adamw"]))
        for part in self._parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: Computes the loss and the gradients first.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            if isinstance(part, torch.optim.Muon) and self.found_inf is not None:
                _step_where(part, self.found_inf == 0)
                continue
            part.found_inf = self.found_inf  # type: ignore[attr-defined]
            part.step()
        return loss


def _step_where(muon: torch.optim.Muon, is_wanted: Bool[Tensor, ""]) -> None:
    """Torch's step, and then what was before where it is not wanted; one matrix at a time, to hold one copy only."""
    groups = muon.param_groups
    try:
        for group in groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                buffer = muon.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter.grad))
                before = parameter.clone(), buffer.clone()
                muon.param_groups = [{**group, "params": [parameter]}]
                muon.step()  # type: ignore[no-untyped-call]
                for tensor, old in zip((parameter, buffer), before, strict=True):
                    tensor.copy_(torch.where(is_wanted, tensor, old))
    finally:
        muon.param_groups = groups
