"""The side of the split that a document falls on: near-duplicates together, test documents set aside."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lmstack.prep.deduplication.arrays import ArrayFile, write_arrays
from lmstack.prep.document import Document, Dropped, Verdict
from lmstack.prep.split import is_validation
from lmstack.prep.stage import Context, Filter

KEY = "split_key"
HELD_OUT = "held out for test"
_JOINED_FILE = "joined.safetensors"
_TEST_SEED = 1 << 32
"""Added to the seed, so that test and validation are drawn apart."""


@dataclass(frozen=True, kw_only=True)
class HoldOut:
    """Gives every document the key that decides its side, and sets test documents aside.

    The key is its cluster of near-duplicates where there is one, else the key that its source gave it, else a hash of
    its text. Keys of documents whose texts have become the same are made one: copies never fall on two sides.

    Attributes:
        kind: `hold_out`.
        test_fraction: Share of the keys set aside; their documents are among the dropped ones of this stage.
        seed: Another seed sets others aside.
    """

    kind: Literal["hold_out"] = "hold_out"
    test_fraction: float = 0.0
    seed: int = 0

    def survey(self, documents: Iterable[Document], file: Path) -> None:
        """Write the hash of each document's key and that of its text.

        Args:
            documents: Of the partition.
            file: To write.
        """
        pairs = [(_hash(_key(document)), _hash(document.text)) for document in documents]
        keys, texts = np.array(pairs, dtype=np.uint64).reshape(-1, 2).T
        write_arrays(file, {"keys": keys, "texts": texts})

    def decide(self, surveys: Sequence[Path], folder: Path) -> None:
        """Write which keys are one with another.

        Args:
            surveys: Of the partitions, in order.
            folder: For the decisions.
        """
        files = [ArrayFile(survey) for survey in surveys]
        keys, texts = (np.concatenate([file.read(name) for file in files]) for name in ("keys", "texts"))
        order = np.lexsort((keys, texts))
        keys, texts = keys[order], texts[order]
        is_joined = (texts[1:] == texts[:-1]) & (keys[1:] != keys[:-1])
        pairs = zip(keys[:-1][is_joined].tolist(), keys[1:][is_joined].tolist(), strict=True)
        joined = np.array(sorted(_roots(pairs)), dtype=np.uint64).reshape(-1, 2)
        write_arrays(folder / _JOINED_FILE, {"joined": joined})

    def filter(self, context: Context) -> Filter:
        """The function that gives keys.

        Args:
            context: Of the partition.
        """
        joined = dict(ArrayFile(context.folder / _JOINED_FILE).read("joined").tolist())

        def judge(document: Document) -> Verdict:
            key = _key(document)
            if joined and (root := joined.get(_hash(key))) is not None:
                key = f"joined {root:016x}"
            marked = document.with_metadata(**{KEY: key})
            if is_validation(key, self.seed + _TEST_SEED, self.test_fraction):
                return Dropped(marked, HELD_OUT, "by its key")
            return marked

        return judge


def _key(document: Document) -> str:
    key = document.metadata.get("cluster") or document.metadata.get("key")
    return str(key or hashlib.blake2b(document.text.encode(), digest_size=16).hexdigest())


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _roots(pairs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Union-find: every key that is in a pair, and the least of those that it is connected with."""
    parents: dict[int, int] = {}

    def root(key: int) -> int:
        parents.setdefault(key, key)
        while parents[key] != key:
            parents[key] = key = parents[parents[key]]
        return key

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parents[high] = low
    for key in parents:
        yield key, root(key)
