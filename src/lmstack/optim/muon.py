"""Muon for hidden matrices and AdamW for everything else, as one optimizer.

Torch's own Muon and AdamW do the arithmetic. Orthogonalizing matrices of one shape together gave no dependable gain on
a CPU: 0.5 to 1.6 times torch's speed for 256x256, 768x256, 1024x256 and 768x768, by shape and number of threads.
"""

from collections.abc import Callable
from typing import Any

import torch


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer whose groups say, by `algorithm`, whether Muon or AdamW updates them.

    Groups and state are those of a Muon and an AdamW inside, not copies, so that learning-rate schedulers, `state_dict`
    and `zero_grad` need to know nothing of the two.

    Args:
        groups: Parameter groups with `algorithm`, `muon` or `adamw`, and the options of that optimizer.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})
        self._build_parts()

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
            part.step()
        return loss
