"""Leave out one optimizer step: weights, moments and counters stay as they are, bit for bit."""

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from lmstack.optim.muon import MuonAdamW


def skip_coming_step(optimizer: torch.optim.Optimizer, is_skipped: Bool[Tensor, ""]) -> None:
    """Make the coming step of an optimizer do nothing, where that is said.

    Call it when the gradients are there, before the optimizer's step. On CUDA nothing waits for the answer.

    Args:
        optimizer: Any, on devices other than CUDA; there, one that `skip_on_device` takes.
        is_skipped: Whether to skip.
    """
    if is_skipped.device.type == "cuda":
        skip_on_device(optimizer, is_skipped)
    elif is_skipped:  # an optimizer leaves alone what has no gradient: its weights, its state, its counter
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


def skip_on_device(optimizer: torch.optim.Optimizer, is_skipped: Bool[Tensor, ""]) -> None:
    """The same with an answer that only the device knows.

    Fused AdamW reads `found_inf`, as it does for `torch.amp.GradScaler`: its kernels write nothing where that is 1, and
    the counter that was raised is lowered again. `MuonAdamW` selects for its matrices.

    Args:
        optimizer: Fused AdamW or `MuonAdamW`.
        is_skipped: Whether to skip.

    Raises:
        ValueError: The optimizer has no such switch.
    """
    if not (isinstance(optimizer, MuonAdamW) or getattr(optimizer, "_step_supports_amp_scaling", False)):
        raise ValueError(
            f"{type(optimizer).__name__} cannot leave out a step on {is_skipped.device.type}. Use optimizer.kind=adamw "
            "or muon, or remove callbacks.spike_guard."
        )
    switch: Any = optimizer
    switch.found_inf = is_skipped.float()
