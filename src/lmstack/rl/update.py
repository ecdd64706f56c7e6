"""How a rollout is learnt from: epochs, minibatches, limits."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

_STREAM = 7
"""Sets the order of rows apart from other draws of the same seed."""


@dataclass(frozen=True)
class UpdateConfig:
    """How a rollout is learnt from.

    Attributes:
        num_epochs: Passes over the rollout.
        num_minibatches: Optimizer steps of a pass.
        micro_batch_size: Responses of a forward pass on one device.
        max_grad_norm: The gradient's global norm is clipped to this.
        target_kl: A rollout is left as soon as KL(policy at sampling time || policy), in nats per token, exceeds this
            on a minibatch; None goes through to the end.
    """

    num_epochs: int = 4
    num_minibatches: int = 4
    micro_batch_size: int = 16
    max_grad_norm: float = 1.0
    target_kl: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("num_epochs", "num_minibatches", "micro_batch_size", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"update.{name}={getattr(self, name)}: must be above 0.")


def minibatch_rows(
    config: UpdateConfig, counts: list[int], rank: int, seed: tuple[int, ...]
) -> Iterator[Int[Tensor, " N"]]:
    """A rank's rows of each minibatch, epoch after epoch.

    Minibatches are drawn from the rows of all ranks, so that the number of ranks does not change what is in them. When
    there are fewer rows than minibatches, each row is one.

    Args:
        config: Epochs and minibatches.
        counts: Rows of each rank.
        rank: Whose rows are given.
        seed: The same on every rank; each epoch adds its number.
    """
    first, total = sum(counts[:rank]), sum(counts)
    for epoch in range(config.num_epochs):
        order = torch.from_numpy(
            np.random.default_rng(np.random.SeedSequence((*seed, epoch, _STREAM))).permutation(total)
        )
        for rows in order.tensor_split(min(config.num_minibatches, total)):
            yield rows[(rows >= first) & (rows < first + counts[rank])] - first
