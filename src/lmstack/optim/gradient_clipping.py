"""The global gradient norm, and clipping to it, on one device or any mesh."""

from collections.abc import Iterable
from typing import cast

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
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros(())
    total = _total_norm(grads)
    is_finite = total.isfinite()
    coef = torch.where(is_finite, (max_norm / (total + 1e-6)).clamp(max=1.0), torch.zeros_like(total))
    for grad in grads:
        local = grad.to_local() if isinstance(grad, DTensor) else grad
        local.copy_(torch.where(is_finite, local * coef.to(local.dtype), torch.zeros_like(local)))
    return total


def _total_norm(grads: list[Tensor]) -> Tensor:
    """The norm of all gradients: norms over one mesh at a time, as torch cannot mix meshes in one operation."""
    by_mesh: dict[object, list[Tensor]] = {}
    for grad in grads:
        by_mesh.setdefault(grad.device_mesh if isinstance(grad, DTensor) else None, []).append(grad)
    norms = [torch.nn.utils.get_total_norm(group) for group in by_mesh.values()]
    whole = [cast(Tensor, norm.full_tensor()) if isinstance(norm, DTensor) else norm for norm in norms]
    return torch.linalg.vector_norm(torch.stack([norm.float() for norm in whole]))
