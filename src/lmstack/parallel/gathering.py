"""Sharded tensors made whole, and whole ones sharded.

The class of sharded tensors takes a second to import, and a run of one process has none: they are known by their mesh.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def gathered(value: Any, *, keep: bool) -> Any:
    """The same with every sharded tensor made whole, one at a time, in host memory. Every process must call it.

    Args:
        value: A tensor, or dictionaries, lists and tuples of what may be tensors.
        keep: Whether this process wants the result; the others get None in place of the tensors.
    """
    if _is_sharded(value):
        whole: Tensor = value.detach().full_tensor()
        return whole.cpu() if keep else None
    if isinstance(value, dict):
        return {key: gathered(item, keep=keep) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(gathered(item, keep=keep) for item in value)
    return value


def sharded_like(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, cut as another tensor is; nothing is sent.

    Args:
        whole: The same on every process.
        like: A tensor of the same shape, sharded or not.
    """
    if not _is_sharded(like) or _is_sharded(whole) or whole.shape != like.shape:
        return whole
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    assert isinstance(like, DTensor)
    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    part = whole[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))]
    return DTensor.from_local(
        part.to(like.device, copy=True).contiguous(),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that is here: all of it, unless it is sharded.

    Args:
        tensor: Sharded or not; the result shares its memory.
    """
    return tensor.to_local() if _is_sharded(tensor) else tensor  # type: ignore[attr-defined]


@torch.no_grad()
def copy_from_first(tensors: list[Tensor], device: torch.device) -> None:
    """Give every process the first one's values, as equal seeds should have.

    Args:
        tensors: As many on every process; changed in place.
        device: One that the processes' backend can send from.
    """
    for tensor in tensors:
        value = tensor.to(device)
        torch.distributed.broadcast(value, 0)
        tensor.copy_(value)


def on_first(action: Callable[[], T]) -> T:
    """Do something in the first process; the others wait, get its result, and fail if it fails.

    Args:
        action: Its result can be pickled.

    Raises:
        RuntimeError: It failed in the first process, and this is another.
    """
    box: list[Any] = [None, None]
    failure: Exception | None = None
    if torch.distributed.get_rank() == 0:
        try:
            box[0] = action()
        except Exception as error:
            failure, box[1] = error, f"{type(error).__name__}: {error}"
    torch.distributed.broadcast_object_list(box, 0)
    if failure is not None:
        raise failure
    if box[1] is not None:
        raise RuntimeError(f"The first process failed: {box[1]}")
    result: T = box[0]
    return result


def everyones(value: T) -> list[T]:
    """The values of all processes, in all processes.

    Args:
        value: This one's; it can be pickled.
    """
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found


def _is_sharded(value: Any) -> bool:
    return isinstance(value, Tensor) and hasattr(value, "device_mesh")
