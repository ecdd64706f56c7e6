"""Rows of token shards, as batches by position: what pretraining reads."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch.utils.data import Dataset

from lmstack.data.batch import TokenBatch
from lmstack.data.batch_size import BatchSizePlan
from lmstack.data.mixture import Mixture
from lmstack.data.packing import pack_rows
from lmstack.data.rank import Rank
from lmstack.data.skipped_rows import SkippedRows
from lmstack.data.token_shards import TokenRows, TokenShards, gather_rows
from lmstack.tokenization.tokenizer import Tokenizer

_STRETCH_ROWS = 2048


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


class ValidationRows(Dataset[TokenBatch]):
    """Rows of the validation streams: each token scored exactly once, and the end of the last document.

    A batch holds rows of one source, so that losses can be told apart by source.

    Args:
        shards: Token stream of each source.
        tokenizer: For the end-of-text id and the bytes of tokens.
        sequence_length: Tokens of a row.
        batch_size: Rows of a batch.
        rank: Which batches are this rank's.
        max_tokens: At most so many tokens, in rows spread evenly over the streams; None takes all.
        stride: Tokens that a row scores, its last; those before are their context, scored by an earlier row. None
            scores all of a row: rows then lie side by side.
        names: Of the sources.
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
        names: Sequence[str] = (),
    ):
        self.stride = sequence_length if stride is None else stride
        if not 0 < self.stride <= sequence_length:
            raise ValueError(
                f"data.validation_stride={stride}: must be from 1 to sequence_length={sequence_length}, or null for "
                "all."
            )
        self.shards = shards
        self.names = names
        self.eot_id = tokenizer.eot_id
        self.byte_lengths = tokenizer.byte_lengths
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.rank = rank
        ends = np.cumsum([0, *(-(-self._num_labels(shard) // self.stride) for shard in shards)])
        total = int(ends[-1])
        kept = total if max_tokens is None else min(total, max(1, max_tokens // self.stride))
        rows = np.arange(kept) * total // max(kept, 1)
        self._batches = [
            (source, own[i : i + batch_size])
            for source, (start, end) in enumerate(pairwise(ends))
            for own in [rows[(start <= rows) & (rows < end)] - start]
            for i in range(0, len(own), batch_size)
        ]

    def __len__(self) -> int:
        return -(-len(self._batches) // self.rank.world_size)

    def source_of(self, index: int) -> int:
        """Which source the rows of a batch are of.

        Args:
            index: Which batch of this rank.
        """
        return self._batch(index)[0]

    def __getitem__(self, index: int) -> TokenBatch:
        """One batch; padding where the rows run out, so that every rank has as many batches.

        Args:
            index: Which batch of this rank.
        """
        source, rows = self._batch(index)
        first_scored = rows * self.stride
        starts = np.maximum(0, first_scored + self.stride - self.sequence_length)
        num_labels = self._num_labels(self.shards[source])
        return pack_rows(
            gather_rows(self.shards, np.full_like(rows, source), starts, self.sequence_length + 1),
            np.minimum(first_scored + self.stride, num_labels) - starts,
            eot_id=self.eot_id,
            byte_lengths=self.byte_lengths,
            num_rows=self.batch_size,
            context=first_scored - starts,
        )

    def _batch(self, index: int) -> tuple[int, Int64[np.ndarray, " N"]]:
        """Source and rows of a batch; no rows where this rank has run out of them."""
        number = index * self.rank.world_size + self.rank.index
        return self._batches[number] if number < len(self._batches) else (0, np.zeros(0, dtype=np.int64))

    def _num_labels(self, shard: TokenShards) -> int:
        """Tokens of a stream that have a label.

        A stream is a ring, and its first token opens a document: it is the end of the last one.
        """
        return shard.num_tokens if self.eot_id is not None else max(0, shard.num_tokens - 1)


def order_identity(fingerprint: str, mixture: Mixture, plan: BatchSizePlan) -> dict[str, Any]:
    """What decides which row comes at which position, and at which optimizer step.

    Args:
        fingerprint: Of the corpus.
        mixture: The order.
        plan: The sizes of steps.
    """
    return {
        "data": fingerprint,
        "global_batch_size": plan.global_batch_size,
        "batch_size_warmup": None if plan.warmup is None else asdict(plan.warmup),
        "sequence_length": mixture.sequence_length,
        "seed": mixture.seed,
        "weights": None if mixture.weights is None else list(mixture.weights),
        "phases": [[phase.first_row, *phase.weights] for phase in mixture.later],
    }
