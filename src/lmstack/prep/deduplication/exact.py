"""The stage that drops documents whose text is there already, but for spaces and case."""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmstack.prep.deduplication.arrays import ArrayFile, write_arrays
from lmstack.prep.deduplication.clusters import (
    Corpus,
    Edge,
    id_array,
    judge_by_clusters,
    partition_file,
    write_clusters,
)
from lmstack.prep.document import Document
from lmstack.prep.stage import Context, Filter, StageSettings

REASON = "exact duplicate"


def normalized(text: str) -> str:
    """Text without what copies of a page differ in most: spaces, case, and how accents are written.

    Args:
        text: Any text.
    """
    return " ".join(unicodedata.normalize("NFC", text.casefold()).split())


@dataclass(frozen=True, kw_only=True)
class ExactDuplicates(StageSettings):
    """Drop documents that are the same but for spaces and case. What is kept is told in `clusters.py`.

    Documents are told apart by 128 bits of a cryptographic hash.

    Attributes:
        kind: `exact_duplicates`.
    """

    kind: Literal["exact_duplicates"] = "exact_duplicates"

    def survey(self, documents: Iterable[Document], file: Path) -> None:
        """Write the hash of each document of a partition.

        Args:
            documents: Of the partition.
            file: To write.
        """
        ids: list[str] = []
        lengths: list[int] = []
        digests = bytearray()
        for document in documents:
            ids.append(document.id)
            lengths.append(len(document.text))
            content = normalized(document.text).encode("utf-8", "surrogatepass")
            digests += hashlib.blake2b(content, digest_size=16).digest()
        arrays: dict[str, NDArray[Any]] = {
            "ids": id_array(ids),
            "lengths": np.array(lengths, dtype=np.uint32),
            "digests": np.frombuffer(bytes(digests), dtype="<u8").reshape(-1, 2),
        }
        write_arrays(file, arrays)

    def decide(self, surveys: Sequence[Path], folder: Path) -> None:
        """Compare all documents; write clusters and what each partition drops.

        Args:
            surveys: Of the partitions, in order.
            folder: For the decisions.
        """
        files = [ArrayFile(survey) for survey in surveys]
        write_clusters(folder, Corpus.read(files), _equal_documents(files))

    def filter(self, context: Context) -> Filter:
        """The judge of a partition's documents.

        Args:
            context: Of the partition.
        """
        roles = json.loads(partition_file(context.folder, context.partition).read_text(encoding="utf-8"))
        return lambda document: judge_by_clusters(document, roles, REASON)


def _equal_documents(files: Sequence[ArrayFile]) -> Iterator[Edge]:
    """Each copy with the preferred document of its hash."""
    ranks = Corpus.read(files).ranks
    low, high = np.concatenate([file.read("digests") for file in files]).T
    order = np.lexsort((ranks, high, low))
    low, high, ranks = low[order], high[order], ranks[order]
    is_copy = np.zeros(len(order), dtype=bool)
    is_copy[1:] = (low[1:] == low[:-1]) & (high[1:] == high[:-1])
    originals = np.maximum.accumulate(np.where(is_copy, 0, np.arange(len(order))))
    for place in np.flatnonzero(is_copy).tolist():
        yield Edge(int(ranks[originals[place]]), int(ranks[place]), 1.0)
