"""The global gradient norm, and clipping to it, on one device or any mesh."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Float[Tensor, ""]:
    """Scale gradients in place so that their global 2-norm is at most `max_norm`, without waiting for the device.

    The norm is that of the whole model: gradients sharded by FSDP2 or tensor parallelism, on one mesh or several, are
    summed over their ranks, so every rank must call this. If it is not finite, every gradient becomes zero, by
    selection and not by multiplication (0 * inf is NaN); the returned norm still says so.

    Args:
        parameters: Those without a gradient are skipped.
        max_norm: Largest norm; infinity only measures (and removes what is not finite).

    Returns:
        The norm before clipping, float32, the same on every rank; 0 without gradients.

    Raises:
        ValueError: `max_norm` is not positive.
    """
    if not max_norm > 0.0:
        raise ValueError(f"max_norm={max_norm}: must be above 0. Use infinity to measure the norm without clipping.")
    clipped = [p for p in parameters if p.grad is not None]
    if not clipped:
        return torch.zeros(())
    meshes = _by_mesh(clipped)
    total = _total_norm([[p.grad for p in group if p.grad is not None] for group in meshes])
    is_not_finite = ~total.isfinite()
    for group in meshes:
        torch.nn.utils.clip_grads_with_norm_(group, max_norm, total)
        for grad in (p.grad for p in group if p.grad is not None):
            local = grad.to_local() if isinstance(grad, DTensor) else grad
            local.masked_fill_(is_not_finite, 0.0)
    return total


def _by_mesh(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters whose gradients live on the same mesh: torch cannot mix meshes in one operation."""
    groups: dict[object, list[nn.Parameter]] = {}
    for p in parameters:
        groups.setdefault(p.grad.device_mesh if isinstance(p.grad, DTensor) else None, []).append(p)
    return list(groups.values())


def _total_norm(groups: list[list[Tensor]]) -> Float[Tensor, ""]:
    norms = []
    for grads in groups:
        group_norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g, dtype=_wide(g)) for g in grads]))
        norms.append(group_norm.full_tensor() if isinstance(group_norm, DTensor) else group_norm)
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.float() for norm in norms]))
    return total


def _wide(grad: Tensor) -> torch.dtype:
    return torch.promote_types(grad.dtype, torch.float32)
