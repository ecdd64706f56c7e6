"""Loaders whose position is one integer: exact on resume, for any number of workers and ranks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import DataLoader, Dataset

from lmstack.data.batch import TokenBatch
from lmstack.data.batch_size import BatchSizePlan
from lmstack.data.mixture import Mixture
from lmstack.data.packing import pack_rows
from lmstack.data.skipped_rows import SkippedRows
from lmstack.data.token_shards import TokenRows, TokenShards, gather_rows
from lmstack.tokenization.tokenizer import Tokenizer

ENDLESS = 10**9
"""The length of a loader that never ends; one that has a length is not read ahead by Lightning."""

_STRETCH_ROWS = 2048


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


class TrainRows(Dataset[list[TokenBatch]]):
    """The micro-batches of this rank for the optimizer step that begins at a position.

    Args:
        shards: Token stream of each source.
        mixture: The order of rows.
        plan: The size of each step.
        tokenizer: For the end-of-text id and the bytes of tokens.
        micro_batch_size: Rows of every micro-batch.
        rank: Which share of a step is made.
    """

    def __init__(
        self,
        shards: list[TokenShards],
        mixture: Mixture,
        plan: BatchSizePlan,
        tokenizer: Tokenizer,
        micro_batch_size: int,
        rank: Rank,
    ):
        self.shards = shards
        self.mixture = mixture
        self.plan = plan
        self.eot_id = tokenizer.eot_id
        self.byte_lengths = tokenizer.byte_lengths
        self.micro_batch_size = micro_batch_size
        self.rank = rank
        self.skipped = SkippedRows()
        self._stretch = 0, mixture.rows(np.arange(0))

    def leave_out(self, skipped: SkippedRows) -> None:
        """Take rows from the order without some stretches of it.

        Args:
            skipped: All that is left out.
        """
        self.skipped = skipped
        self._stretch = 0, self.mixture.rows(np.arange(0))

    def __getitem__(self, position: int) -> list[TokenBatch]:
        """The micro-batches of a step; as many on every rank, padded where rows run out.

        Args:
            position: Rows before the step, over all ranks.
        """
        num_rows = self.plan.batch_size_at(position)
        share = self.rank.share(num_rows)
        largest_share = -(-num_rows // self.rank.world_size)
        positions = np.arange(position + share.start, position + share.stop)
        source, starts = self._order(position + share.start, position + share.stop)
        tokens = gather_rows(self.shards, source, starts, self.mixture.sequence_length + 1)
        lengths = self._lengths(positions)
        return [
            pack_rows(
                TokenRows(*(part[i : i + self.micro_batch_size] for part in tokens)),
                lengths[i : i + self.micro_batch_size],
                eot_id=self.eot_id,
                byte_lengths=self.byte_lengths,
                num_rows=self.micro_batch_size,
            )
            for i in range(0, largest_share, self.micro_batch_size)
        ]

    def _order(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Source and start of the rows at some positions, cut from a longer stretch: many cost hardly more than one."""
        first, rows = self._stretch
        if start < first or stop > first + len(rows.source):
            positions = np.arange(start, max(stop, start + _STRETCH_ROWS))
            first, rows = start, self.mixture.rows(self.skipped.places(positions))
            self._stretch = first, rows
        own = slice(start - first, stop - first)
        return rows.source[own], rows.start[own]

    def _lengths(self, positions: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
        """Tokens of each row that belong to the run: all, but for a last row that `max_tokens` cuts."""
        length = self.mixture.sequence_length
        if self.plan.max_tokens is None:
            return np.full(len(positions), length)
        lengths: np.ndarray = np.minimum(length, self.plan.max_tokens - positions * length)
        return lengths


@runtime_checkable
class StepPlan(Protocol):
    """How many rows each optimizer step takes."""

    @property
    def num_steps(self) -> int | None:
        """Optimizer steps of the run; None when it never ends."""
        ...

    def batch_size_at(self, samples: int) -> int:
        """Rows of the step that begins after so many rows; 0 when the run is over.

        Args:
            samples: Rows before it, over all ranks.
        """
        ...


@runtime_checkable
class StepRows(Protocol):
    """Makes the step that begins at a position."""

    @property
    def plan(self) -> StepPlan:
        """The size of each step."""
        ...

    def leave_out(self, skipped: SkippedRows) -> None:
        """Take rows from the order without some stretches of it.

        Args:
            skipped: All that is left out.
        """
        ...

    def __getitem__(self, position: int) -> Any: ...


class StepLoader:
    """Optimizer steps: each item is what this rank does in one step, such as the list of its micro-batches.

    Args:
        rows: Makes a step from its position.
        identity: What decides which rows come where, by name; a state is refused when any of it differs.
        num_workers: Processes that make steps ahead; 0 makes them in this process, which is fast enough.
    """

    def __init__(self, rows: StepRows, identity: dict[str, Any], num_workers: int = 0):
        self.rows = rows
        self.identity = identity
        self.num_workers = num_workers
        self.samples_seen = 0
        self.skipped = SkippedRows()

    def __len__(self) -> int:
        num_steps = self.rows.plan.num_steps
        return ENDLESS if num_steps is None else num_steps

    def __iter__(self) -> Iterator[Any]:
        plan = self.rows.plan
        for micro_batches in _ahead(self.rows, self._positions(), self.num_workers):
            self.samples_seen += plan.batch_size_at(self.samples_seen)
            yield micro_batches

    def _positions(self) -> Iterator[int]:
        position = self.samples_seen
        while size := self.rows.plan.batch_size_at(position):
            yield position
            position += size

    def state_dict(self) -> dict[str, Any]:
        """The position: rows handed out, not those that workers prepared; and what it is a position in."""
        return {"samples_seen": self.samples_seen, "skipped": [list(w) for w in self.skipped.windows], **self.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the rows that were handed out when the state was taken.

        Args:
            state: What `state_dict` gave, on any rank of any number of ranks.

        Raises:
            ValueError: The state is a position in other data; what differs is named.
        """
        for name, value in self.identity.items():
            if name not in state or state[name] != value:
                raise ValueError(
                    f"The checkpoint is a position in other data: its {name} is {state.get(name)!r}, this run's is "
                    f"{value!r}. Resume with the data it was made with, or start a new run from its weights "
                    "(model.init_from)."
                )
        self.samples_seen = int(state["samples_seen"])
        self._leave_out(SkippedRows(tuple((start, stop) for start, stop in state.get("skipped", ()))))

    def skip(self, start: int, stop: int) -> None:
        """Leave out a stretch of the order that is still to come; an iterator that runs already does not notice.

        Args:
            start: Its first place in the full order.
            stop: The place after its last.

        Raises:
            ValueError: Some of it was handed out.
        """
        next_place = self.skipped.place(self.samples_seen)
        if start < next_place:
            raise ValueError(
                f"Rows {start} to {stop} cannot be skipped: all before {next_place} were handed out. Go back to an "
                "earlier checkpoint first."
            )
        self._leave_out(self.skipped.without(start, stop))

    def _leave_out(self, skipped: SkippedRows) -> None:
        self.skipped = skipped
        self.rows.leave_out(skipped)


def order_identity(fingerprint: str, mixture: Mixture) -> dict[str, Any]:
    """What decides which row comes at which position.

    Args:
        fingerprint: Of the corpus.
        mixture: The order.
    """
    weights = None if mixture.weights is None else list(mixture.weights)
    return {
        "data": fingerprint,
        "sequence_length": mixture.sequence_length,
        "seed": mixture.seed,
        "weights": weights,
    }


class ValidationRows(Dataset[TokenBatch]):
    """Rows of the validation streams: each token scored exactly once, and the end of the last document.

    Args:
        shards: Token stream of each source.
        tokenizer: For the end-of-text id and the bytes of tokens.
        sequence_length: Tokens of a row.
        batch_size: Rows of a batch.
        rank: Which batches are this rank's.
        max_tokens: At most so many tokens, in rows spread evenly over the streams; None takes all.
        stride: Tokens that a row scores, its last; those before are their context, scored by an earlier row. None
            scores all of a row: rows then lie side by side.
    """

    def __init__(
        self,
        shards: list[TokenShards],
        tokenizer: Tokenizer,
        sequence_length: int,
        batch_size: int,
        rank: Rank,
        max_tokens: int | None = None,
        stride: int | None = None,
    ):
        self.stride = sequence_length if stride is None else stride
        if not 0 < self.stride <= sequence_length:
            raise ValueError(
                f"data.validation_stride={stride}: must be from 1 to sequence_length={sequence_length}, or null for "
                "all."
            )
        self.shards = shards
        self.eot_id = tokenizer.eot_id
        self.byte_lengths = tokenizer.byte_lengths
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.rank = rank
        counts = [-(-self._num_labels(shard) // self.stride) for shard in shards]
        self._ends = np.cumsum(counts)
        total = int(self._ends[-1]) if counts else 0
        kept = total if max_tokens is None else min(total, max(1, max_tokens // self.stride))
        self._rows = np.arange(kept) * total // max(kept, 1)

    def __len__(self) -> int:
        return -(-len(self._rows) // (self.batch_size * self.rank.world_size))

    def __getitem__(self, index: int) -> TokenBatch:
        """One batch; padding where the rows run out, so that every rank has as many batches.

        Args:
            index: Which batch of this rank.
        """
        first = (index * self.rank.world_size + self.rank.index) * self.batch_size
        rows = self._rows[first : first + self.batch_size]
        source = np.searchsorted(self._ends, rows, side="right")
        counts = np.diff(self._ends, prepend=0)
        first_scored = (rows - (self._ends - counts)[source]) * self.stride
        starts = np.maximum(0, first_scored + self.stride - self.sequence_length)
        num_labels = np.array([self._num_labels(shard) for shard in self.shards])[source]
        return pack_rows(
            gather_rows(self.shards, source, starts, self.sequence_length + 1),
            np.minimum(first_scored + self.stride, num_labels) - starts,
            eot_id=self.eot_id,
            byte_lengths=self.byte_lengths,
            num_rows=self.batch_size,
            context=first_scored - starts,
        )

    def _num_labels(self, shard: TokenShards) -> int:
        """Tokens of a stream that have a label.

        A stream is a ring, and its first token opens a document: it is the end of the last one.
        """
        return shard.num_tokens if self.eot_id is not None else max(0, shard.num_tokens - 1)


@runtime_checkable
class HeldOutRows(Protocol):
    """Makes batches by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class ValidationLoader:
    """Batches of held-out rows, from the first at every pass.

    Args:
        rows: Makes a batch.
        num_workers: As in `StepLoader`.
    """

    def __init__(self, rows: HeldOutRows, num_workers: int = 0):
        self.rows = rows
        self.num_workers = num_workers

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Any]:
        yield from _ahead(self.rows, iter(range(len(self.rows))), self.num_workers)


def _ahead(rows: Any, indices: Iterator[int], num_workers: int) -> Iterator[Any]:
    """The items at these indices, in order, made by worker processes when there are any."""
    if num_workers == 0:
        yield from map(rows.__getitem__, indices)
        return
    generator = torch.Generator()
    generator.manual_seed(0)  # its own, so that starting workers leaves the global random state alone
    yield from DataLoader(
        rows,
        batch_size=None,
        sampler=_Indices(indices),
        num_workers=num_workers,
        collate_fn=_unchanged,
        generator=generator,
        pin_memory=torch.cuda.is_available(),
    )


class _Indices(torch.utils.data.Sampler[int]):
    def __init__(self, indices: Iterator[int]):
        self.indices = indices

    def __iter__(self) -> Iterator[int]:
        return self.indices


def _unchanged(item: Any) -> Any:
    return item
