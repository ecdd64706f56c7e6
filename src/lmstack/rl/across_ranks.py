"""Numbers of all ranks together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AcrossRanks:
    """Sums, means and maxima over the ranks of a run.

    Attributes:
        sum_over_ranks: All-reduces a tensor; gives it back on one process.
        rank: This one, counted from 0.
        world_size: How many.
        device: Where tensors are reduced.
    """

    sum_over_ranks: Callable[[Tensor], Tensor] = lambda x: x
    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    def sum(self, value: Tensor) -> Tensor:
        """The sum, on `device`.

        Args:
            value: Of this rank.
        """
        return self.sum_over_ranks(value.to(self.device))

    def means(self, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Sums over counts.

        Args:
            pairs: (sum, count) of this rank, by name; the same names on every rank.
        """
        if not pairs:
            return {}
        stacked = torch.stack([torch.stack([part.detach().double().cpu() for part in pair]) for pair in pairs.values()])
        totals = self.sum(stacked).tolist()
        return {name: total / max(count, 1.0) for name, (total, count) in zip(pairs, totals, strict=True)}

    def max(self, value: float) -> float:
        """The largest value.

        Args:
            value: Of this rank.
        """
        return max(self.all(value))

    def all(self, value: float) -> list[float]:
        """Every rank's value, in order of ranks.

        Args:
            value: Of this rank.
        """
        if self.world_size == 1:
            return [value]
        own = torch.zeros(self.world_size, dtype=torch.float64, device=self.device)
        own[self.rank] = value
        values: list[float] = self.sum_over_ranks(own).tolist()
        return values
