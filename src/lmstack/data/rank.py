"""A process among those that share every optimizer step."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rank:
    """One of several processes that share every optimizer step.

    Attributes:
        index: Which, counted from 0.
        world_size: How many.
    """

    index: int = 0
    world_size: int = 1

    @classmethod
    def of(cls, trainer: Any) -> "Rank":
        """This process's place among those that have different data; tensor and pipeline parallel ones share theirs.

        Args:
            trainer: Lightning's; None is one process.
        """
        if trainer is None:
            return cls()
        kwargs = getattr(trainer.strategy, "distributed_sampler_kwargs", None)
        if kwargs is None:
            return cls(trainer.global_rank, trainer.world_size)
        return cls(kwargs["rank"], kwargs["num_replicas"])

    def share(self, num_rows: int) -> range:
        """Which of so many rows are this rank's: as even as can be, side by side.

        Args:
            num_rows: Rows over all ranks.
        """
        return range(self.index * num_rows // self.world_size, (self.index + 1) * num_rows // self.world_size)
