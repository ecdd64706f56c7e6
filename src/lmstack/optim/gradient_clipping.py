"""The global gradient norm, and clipping to it, on one device or any mesh."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class GradientsElsewhere:
    """What the norm must know where other processes hold other layers.

    Attributes:
        sum_squares: This process's squared norm to that of all, in place; every process calls it.
        counted_there: Parameters that another process holds too, and counts.
    """

    sum_squares: Callable[[Float[Tensor, ""]], None]
    counted_there: Collection[nn.Parameter] = ()


@torch.no_grad()
def clip_grad_norm(
    parameters: Iterable[nn.Parameter], max_norm: float, *, elsewhere: GradientsElsewhere | None = None
) -> Float[Tensor, ""]:
    """Scale gradients in place so that their global 2-norm is at most `max_norm`, without waiting for the device.

    The norm is that of the whole model: gradients sharded by FSDP2 or tensor parallelism, on one mesh or several, are
    summed over their ranks, so every rank must call this. If it is not finite, every gradient becomes zero, by
    selection and not by multiplication (0 * inf is NaN); the returned norm still says so.

    Args:
        parameters: Those without a gradient are skipped.
        max_norm: Largest norm; infinity only measures (and removes what is not finite).
        elsewhere: Layers of the same model in other processes; None when all are here.

    Returns:
        The norm before clipping, float32, the same on every rank; 0 without gradients.

    Raises:
        ValueError: `max_norm` is not positive.
    """
    if not max_norm > 0.0:
        raise ValueError(f"max_norm={max_norm}: must be above 0. Use infinity to measure the norm without clipping.")
    by_mesh: dict[object, list[nn.Parameter]] = {}  # torch cannot mix meshes in one operation
    for parameter in parameters:
        if parameter.grad is not None:
            by_mesh.setdefault(_mesh(parameter.grad), []).append(parameter)
    if not by_mesh and elsewhere is None:
        return torch.zeros(())
    total = _total(by_mesh.values(), elsewhere)
    is_not_finite = ~total.isfinite()
    if total.device.type == "cpu" and not is_not_finite and total <= max_norm:  # on a CPU nobody waits for the answer
        return total
    for group in by_mesh.values():
        torch.nn.utils.clip_grads_with_norm_(group, max_norm, total)
        if total.device.type == "cpu" and not is_not_finite:
            continue
        for p in group:
            grad: Any = p.grad
            local = grad if _mesh(grad) is None else grad.to_local()
            local.masked_fill_(is_not_finite, 0.0)
    return total


def _total(groups: Iterable[list[nn.Parameter]], elsewhere: GradientsElsewhere | None) -> Float[Tensor, ""]:
    skipped = () if elsewhere is None else {id(p) for p in elsewhere.counted_there}
    counted = [[p.grad for p in group if p.grad is not None and id(p) not in skipped] for group in groups]
    norms = [_norm(grads) for grads in counted if grads]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
    if elsewhere is None:
        return total
    squares = total.square()
    elsewhere.sum_squares(squares)
    return squares.sqrt()


def _mesh(tensor: Tensor) -> object | None:
    """The device mesh of a DTensor; None for a plain tensor."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    # Here, as importing it takes a second and a run of one process never does.
    from torch.distributed.tensor import DTensor

    return tensor.device_mesh if isinstance(tensor, DTensor) else None


def _norm(grads: list[Tensor]) -> Float[Tensor, ""]:
    """The norm of gradients on one mesh, whole and in float32."""
    each = [torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32)) for g in grads]
    norm: Any = torch.linalg.vector_norm(torch.stack(each))
    whole: Tensor = norm if _mesh(norm) is None else norm.full_tensor()
    return whole.float()
