"""Conversations in tokens to rows of a batch: truncation, packing, labels."""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int32

from lmstack.data.batch import IGNORE_INDEX, PADDING_DOCUMENT, TokenBatch

Truncation = Literal["error", "drop", "left", "right"]
"""What happens to a conversation that is too long: the run stops, it is left out, its beginning or its end is cut."""


@dataclass(frozen=True)
class TokenSequence:
    """A conversation in tokens.

    Attributes:
        input_ids: Its token ids.
        is_trained: Whether each of them is to be learnt.
        where: File and line it came from.
    """

    input_ids: list[int]
    is_trained: list[bool]
    where: str

    @property
    def num_targets(self) -> int:
        """Tokens to learn; the first of a row has nothing to be predicted from."""
        return sum(self.is_trained[1:])


def truncate(sequence: TokenSequence, longest: int, policy: Truncation) -> TokenSequence | None:
    """A sequence of at most `longest` + 1 tokens, of which the last is only a label; None where it is left out.

    Args:
        sequence: Of any length.
        longest: Tokens that are fed.
        policy: What happens to longer ones.

    Raises:
        ValueError: It is too long and `policy` is `error`.
    """
    if len(sequence.input_ids) <= longest + 1:
        return sequence
    if policy == "error":
        raise ValueError(
            f"{sequence.where}: {len(sequence.input_ids)} tokens do not fit in sequence_length={longest}. Raise it, or "
            "set data.truncation to drop, left or right."
        )
    if policy == "drop":
        return None
    kept = slice(-longest - 1, None) if policy == "left" else slice(0, longest + 1)
    return TokenSequence(sequence.input_ids[kept], sequence.is_trained[kept], sequence.where)


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Items in bins, each as full as can be: longest first, into the fullest bin that still has room.

    Best-fit decreasing uses at most 11/9 of the fewest possible bins (Johnson 1974); for packing documents without
    cutting them see Ding et al. 2024, arXiv:2404.10830.

    Args:
        lengths: Of the items, none above `capacity`.
        capacity: Of a bin.

    Returns:
        Item numbers of each bin.
    """
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, bin), sorted
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = _first_at_least(rooms, lengths[item])
        if place == len(rooms):
            bins.append([])
            room, number = capacity, len(bins) - 1
        else:
            room, number = rooms.pop(place)
        bins[number].append(item)
        insort(rooms, (room - lengths[item], number))
    return bins


def collate_rows(
    rows: Sequence[Sequence[TokenSequence]],
    *,
    length: int | None,
    num_rows: int,
    byte_lengths: Int32[np.ndarray, " V"],
) -> TokenBatch:
    """Rows of one or more sequences side by side, each a document of its own.

    Args:
        rows: Sequences of each row.
        length: Tokens of a row; None is that of the longest.
        num_rows: Rows of the batch; those beyond the given ones are padding.
        byte_lengths: Bytes that each token stands for.
    """
    width = length or max((sum(len(s.input_ids) - 1 for s in row) for row in rows), default=1)
    shape = (num_rows, width)
    inputs, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels, documents = np.full(shape, IGNORE_INDEX), np.full(shape, PADDING_DOCUMENT)
    for number, row in enumerate(rows):
        start = 0
        for document, sequence in enumerate(row):
            ids = np.array(sequence.input_ids)
            stop = start + len(ids) - 1
            inputs[number, start:stop] = ids[:-1]
            labels[number, start:stop] = np.where(sequence.is_trained[1:], ids[1:], IGNORE_INDEX)
            documents[number, start:stop], positions[number, start:stop] = document, np.arange(stop - start)
            start = stop
    counted = labels != IGNORE_INDEX
    num_bytes = np.where(counted, byte_lengths[np.where(counted, labels, 0)], 0).sum(axis=1, dtype=np.int64)
    return TokenBatch(*map(torch.from_numpy, (inputs, labels, documents, positions, num_bytes)))


def _first_at_least(rooms: list[tuple[int, int]], length: int) -> int:
    low, high = 0, len(rooms)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if rooms[middle][0] >= length else (middle + 1, high)
    return low
