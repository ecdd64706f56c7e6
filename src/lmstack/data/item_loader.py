"""Optimizer steps from a list of items that is gone through several times, in an order that the seed decides."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64
from torch.utils.data import Dataset

from lmstack.data.rank import Rank
from lmstack.data.skipped_rows import SkippedRows


class Share(NamedTuple):
    """What falls to this rank in an optimizer step.

    Attributes:
        items: Numbers of its items.
        largest: How many items the fullest rank has.
        first: Position in the run of the first one.
    """

    items: list[int]
    largest: int
    first: int


class EpochPlan:
    """How many items each optimizer step takes, and how many steps a run has; epochs follow on one another.

    Args:
        item_tokens: Tokens of each item.
        global_batch_size: Items of a step, over all ranks.
        num_epochs: Passes over the items; None never ends.
        seed: Another seed is another order.
    """

    def __init__(
        self, item_tokens: Int64[np.ndarray, " N"], global_batch_size: int, num_epochs: float | None, seed: int
    ) -> None:
        if global_batch_size < 1:
            raise ValueError(f"data.global_batch_size={global_batch_size} is not positive. Use at least 1.")
        if num_epochs is not None and not num_epochs > 0:
            raise ValueError(f"data.num_epochs={num_epochs}: must be above 0, or null for a run of trainer.max_steps.")
        self.item_tokens = item_tokens
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.num_items = len(item_tokens)
        self.skipped = SkippedRows()
        self.num_samples = None if num_epochs is None else max(1, round(self.num_items * num_epochs))

    @property
    def num_steps(self) -> int | None:
        """Optimizer steps of the run; None when it never ends."""
        return None if self.num_samples is None else -(-self.num_samples // self.global_batch_size)

    def batch_size_at(self, samples: int) -> int:
        """Items of the step that begins after so many items; 0 when the run is over.

        Args:
            samples: Items before it, over all ranks.
        """
        left = self.global_batch_size if self.num_samples is None else self.num_samples - samples
        return max(0, min(self.global_batch_size, left))

    def samples_at_step(self, step: int) -> int:
        """Items consumed when so many optimizer steps are done.

        Args:
            step: Optimizer steps.
        """
        samples = step * self.global_batch_size
        return samples if self.num_samples is None else min(samples, self.num_samples)

    def tokens_at_step(self, step: int) -> int:
        """Tokens consumed when so many optimizer steps are done.

        Args:
            step: Optimizer steps.
        """
        samples = self.samples_at_step(step)
        end = self.skipped.place(samples - 1) + 1 if samples else 0
        skipped = [window for window in self.skipped.windows if window[0] < end]
        return self._tokens_before(end) - sum(self._tokens_before(b) - self._tokens_before(a) for a, b in skipped)

    def steps_for_tokens(self, tokens: int) -> int:
        """Optimizer steps after which at least so many tokens are consumed, as if the run went on for ever.

        Args:
            tokens: Tokens, over all ranks.
        """
        endless = EpochPlan(self.item_tokens, self.global_batch_size, None, self.seed)
        most = -(-tokens * self.num_items // max(1, int(self.item_tokens.sum()))) + 2 * self.num_items
        return bisect_left(range(most // self.global_batch_size + 2), tokens, key=endless.tokens_at_step)

    def item_at(self, position: int) -> int:
        """Which item comes at a position.

        Args:
            position: Items before it, over all ranks and epochs.
        """
        return self.item_in_order(self.skipped.place(position))

    def item_in_order(self, place: int) -> int:
        """Which item stands at a place of the full order.

        Args:
            place: Items before it, with those that are left out.
        """
        epoch, rest = divmod(place, self.num_items)
        return int(_permutation(self.seed, epoch, self.num_items)[rest])

    def _tokens_before(self, place: int) -> int:
        epochs, rest = divmod(place, self.num_items)
        order = _permutation(self.seed, epochs, self.num_items)[:rest]
        return int(epochs * self.item_tokens.sum() + self.item_tokens[order].sum())


class ItemSteps(Dataset[Any]):
    """This rank's part of the optimizer step that begins at a position.

    Args:
        plan: The order of items and the size of steps.
        rank: Which share of a step is made.
        make: Makes it.
    """

    def __init__(self, plan: EpochPlan, rank: Rank, make: Callable[[Share], Any]) -> None:
        self.plan = plan
        self.rank = rank
        self.make = make

    def leave_out(self, skipped: SkippedRows) -> None:
        """Take items from the order without some stretches of it.

        Args:
            skipped: All that is left out.
        """
        self.plan.skipped = skipped

    def __getitem__(self, position: int) -> Any:
        """The step.

        Args:
            position: Items before it, over all ranks.
        """
        num_items = self.plan.batch_size_at(position)
        share = self.rank.share(num_items)
        items = [self.plan.item_at(position + place) for place in share]
        return self.make(Share(items, -(-num_items // self.rank.world_size), position + share.start))


class HeldOut(Dataset[Any]):
    """Batches of all items in order, as many on every rank.

    Args:
        num_items: How many there are.
        batch_size: Items of a batch.
        rank: Which batches are this rank's.
        make: Makes a batch from items; from none, one that is there only for its shape.
    """

    def __init__(self, num_items: int, batch_size: int, rank: Rank, make: Callable[[Sequence[int]], Any]) -> None:
        self.num_items, self.batch_size, self.rank, self.make = num_items, batch_size, rank, make

    def __len__(self) -> int:
        return -(-self.num_items // (self.batch_size * self.rank.world_size))

    def __getitem__(self, index: int) -> Any:
        """A batch.

        Args:
            index: Which one of this rank.
        """
        first = (index * self.rank.world_size + self.rank.index) * self.batch_size
        return self.make(range(min(first, self.num_items), min(first + self.batch_size, self.num_items)))


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_items: int) -> Int64[np.ndarray, " N"]:
    order: np.ndarray = np.random.default_rng(np.random.SeedSequence((seed, epoch))).permutation(num_items)
    return order
