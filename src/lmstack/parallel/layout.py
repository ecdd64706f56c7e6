"""How many processes do what: the sizes of a device mesh."""

import math
from dataclasses import dataclass, replace
from typing import Literal

AUTO = "auto"
Size = int | Literal["auto"]
DIMENSIONS = ("pipeline", "replicas", "shards", "tensor")


@dataclass(frozen=True)
class Layout:
    """Processes along each dimension of the mesh, the slowest-changing first; their product is the world size.

    Neighbouring processes, which share a machine, are neighbours in the tensor dimension, which talks most.

    Attributes:
        pipeline: Groups of layers, one after the other.
        replicas: Copies of the weights, each with its own data.
        shards: Parts of the weights, each gathered when it is needed; each with its own data.
        tensor: Parts of every layer, which work on the same data.
    """

    pipeline: int = 1
    replicas: int = 1
    shards: int = 1
    tensor: int = 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """In the order of `DIMENSIONS`."""
        return self.pipeline, self.replicas, self.shards, self.tensor

    @property
    def data_parallel(self) -> int:
        """Processes that have different data."""
        return self.replicas * self.shards

    def coordinates(self, rank: int) -> "Layout":
        """Where a process stands along each dimension, counted from 0.

        Args:
            rank: Its number among all.
        """
        places = []
        for size in reversed(self.sizes):
            rank, place = divmod(rank, size)
            places.append(place)
        return Layout(*reversed(places))


def layout_of(world_size: int, *, pipeline: Size, replicas: Size, shards: Size, tensor: Size) -> Layout:
    """The sizes, with the one that is `auto` taking what is left.

    Args:
        world_size: Processes.
        pipeline: As in `Layout`.
        replicas: As in `Layout`.
        shards: As in `Layout`.
        tensor: As in `Layout`.

    Raises:
        ValueError: The product is not the world size, or more than one is `auto`.
    """
    given = dict(zip(DIMENSIONS, (pipeline, replicas, shards, tensor), strict=True))
    open_sizes = [name for name, size in given.items() if size == AUTO]
    fixed = {name: int(size) for name, size in given.items() if size != AUTO}
    text = " x ".join(f"{name}={size}" for name, size in given.items())
    if len(open_sizes) > 1 or any(size < 1 for size in fixed.values()):
        raise ValueError(f"trainer.strategy: {text}: each must be 1 or more, and only one may be auto.")
    rest, remainder = divmod(world_size, math.prod(fixed.values()))
    if remainder or (not open_sizes and rest != 1):
        raise ValueError(
            f"trainer.strategy: {text} does not make {world_size} processes. Change one of the sizes, make one auto, "
            "or change trainer.devices."
        )
    return replace(Layout(**fixed), **dict.fromkeys(open_sizes, rest))
