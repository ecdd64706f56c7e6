"""Part of the text of some sources, in given shares: what a tokenizer is trained on. Nothing is kept in memory."""

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from lmstack.data.shares import source_weights

_BLOCK_CHARACTERS = 4096


class SampledSource(NamedTuple):
    """How much of a source is taken.

    Attributes:
        bytes: UTF-8 bytes that there are.
        copies: How often each stretch of it is taken on average: 0.5 takes half, 3 everything three times.
    """

    bytes: int
    copies: float


def plan_sample(
    num_bytes: Mapping[str, int],
    *,
    sample_bytes: int | None,
    weights: dict[str, float] | None,
    temperature: float | None,
) -> dict[str, SampledSource]:
    """How much of each source to take.

    Args:
        num_bytes: UTF-8 bytes of each source.
        sample_bytes: To take of all sources together; None is as much as there is.
        weights: Share by source, in any unit; None weighs all alike.
        temperature: Shares by size^(1/temperature), times the weights; None leaves the size out of it, or goes by size
            when there are no weights either.

    Raises:
        ValueError: A source is empty, is unknown or has no weight, or a number is out of range.
    """
    if empty := [name for name, size in num_bytes.items() if size == 0]:
        raise ValueError(
            f"Source {empty[0]!r} holds no text to train on. Check its paths, or lower validation_fraction."
        )
    if sample_bytes is not None and sample_bytes < 1:
        raise ValueError(f"sample_bytes={sample_bytes}: must be 1 or more, or null for all of the text.")
    asked = source_weights(num_bytes, weights, temperature)
    total = sum(num_bytes.values()) if sample_bytes is None else sample_bytes
    shares = zip(num_bytes.items(), asked, strict=True)
    return {name: SampledSource(size, weight / sum(asked) * total / size) for (name, size), weight in shares}


def sample_text(texts: Iterable[str], copies: float, seed: str) -> Iterator[str]:
    """Stretches of whole lines, each taken as often as `copies` says, up or down by chance.

    Args:
        texts: Read once.
        copies: How often on average; not negative.
        seed: Another seed takes other stretches.
    """
    draw = random.Random(seed)
    for text in texts:
        start = 0
        while start < len(text):
            stop = text.find("\n", start + _BLOCK_CHARACTERS) + 1 or len(text)
            for _ in range(int(copies + draw.random())):
                yield text[start:stop]
            start = stop
