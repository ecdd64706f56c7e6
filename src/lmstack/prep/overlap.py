"""Refuse a corpus that would be tested on what it was trained on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lmstack.data.manifest import Split
from lmstack.data.token_shards import TokenShards
from lmstack.prep.partition import Partition, digests_file
from lmstack.tokenization.tokenizer import Tokenizer

_NUM_EXAMPLES = 3


def refuse_overlap(output: Path, partitions: Sequence[Partition], tokenizer: Tokenizer) -> None:
    """Check that no document, to the byte, is in training and in validation.

    Args:
        output: Folder of the corpus, its shards written.
        partitions: All of its partitions.
        tokenizer: To show examples.

    Raises:
        ValueError: Documents are on both sides; some are quoted.
    """
    held_out = np.unique(np.concatenate([_digests(output, partition, "validation") for partition in partitions]))
    num_shared = 0
    examples: list[str] = []
    before: dict[str, int] = {}
    for partition in partitions:
        digests = _digests(output, partition, "train")
        shared = np.flatnonzero(np.isin(digests, held_out, assume_unique=False))
        num_shared += len(shared)
        first = before.get(partition.source_name, 0)
        for index in shared[: _NUM_EXAMPLES - len(examples)]:
            shards = TokenShards(output / "train" / partition.source_name)
            text = tokenizer.decode(shards.document(first + int(index)).tolist(), skip_special=True)
            examples.append(f"{text[:80]!r} ({partition.source_name})")
        before[partition.source_name] = first + len(digests)
    if num_shared:
        raise ValueError(
            f"{num_shared} training documents are in validation too, such as {'; '.join(examples)}. Take them out of "
            "one side, or let `key_field` name what they share so that they stay together."
        )


def _digests(output: Path, partition: Partition, split: Split) -> np.ndarray:
    return np.fromfile(digests_file(output, partition.index, split), dtype=np.uint64)
