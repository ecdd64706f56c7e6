"""Which tokens count, and how many they are."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

IGNORE_INDEX = -100
"""The label of a token that does not count."""


def is_supervised(labels: Int[Tensor, "*B"]) -> Bool[Tensor, "*B"]:
    """Which tokens count.

    Args:
        labels: Label of each token, `IGNORE_INDEX` where it does not count.

    Returns:
        True where the label counts.
    """
    return labels != IGNORE_INDEX


def count_supervised(labels: Int[Tensor, "*B"]) -> Int[Tensor, ""]:
    """The number of tokens that count: what a sum of token losses is divided by.

    Args:
        labels: Label of each token, `IGNORE_INDEX` where it does not count.

    Returns:
        An int64 scalar on the labels' device; nothing waits for it.
    """
    return is_supervised(labels).sum(dtype=torch.int64)
