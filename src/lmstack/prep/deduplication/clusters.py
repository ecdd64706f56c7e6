"""Clusters of duplicates: which documents belong together, which are kept, and files in which one can look.

The rule of what is kept: documents are taken in the order of preference (the longest first, of equal ones that with the
smallest id), and one is kept unless it duplicates one that is kept already. So every dropped document is a duplicate of
a kept one that is named beside it; chains of duplicates do not pull in documents that merely resemble their ends. The
documents of a cluster, kept or not, should stay on one side of a split.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmstack.prep.deduplication.arrays import ArrayFile
from lmstack.prep.document import Document, Dropped, Verdict

CLUSTERS_FILE = "clusters.jsonl"


class Edge(NamedTuple):
    """Two documents that are duplicates.

    Attributes:
        first: Rank of the preferred one.
        second: Rank of the other.
        similarity: How alike they are, in (0, 1].
    """

    first: int
    second: int
    similarity: float


@dataclass(frozen=True)
class Corpus:
    """All documents of all partitions in the order of preference.

    Attributes:
        ids: Of each document, partition after partition.
        lengths: Its characters.
        by_rank: The documents, the most preferred first.
        ranks: The place of each document in `by_rank`.
        first_documents: The first document of each partition, and the end.
    """

    ids: NDArray[Any]
    lengths: NDArray[np.uint32]
    by_rank: NDArray[np.int64]
    ranks: NDArray[np.int64]
    first_documents: NDArray[np.int64]

    @classmethod
    def read(cls, surveys: Sequence[ArrayFile]) -> "Corpus":
        """Rank the documents of some surveys.

        Args:
            surveys: With `ids` and `lengths` of each partition's documents.
        """
        ids_of = [survey.read("ids") for survey in surveys]
        width = max((each.shape[1] for each in ids_of), default=1)
        ids = np.concatenate([_as_bytes(each, width) for each in ids_of])
        lengths = np.concatenate([survey.read("lengths") for survey in surveys])
        by_rank = np.lexsort((ids, -lengths.astype(np.int64)))
        ranks = np.empty_like(by_rank)
        ranks[by_rank] = np.arange(len(by_rank))
        return cls(ids, lengths, by_rank, ranks, np.cumsum([0] + [len(each) for each in ids_of]))

    def id_of(self, rank: int) -> str:
        """The id of the document of a rank.

        Args:
            rank: Its place in the order of preference.
        """
        identity: bytes = self.ids[self.by_rank[rank]]
        return identity.decode()


def id_array(ids: Sequence[str]) -> NDArray[np.uint8]:
    """Ids as an array that `Corpus.read` reads, one a row.

    Args:
        ids: Of the documents.
    """
    array = np.array([identity.encode() for identity in ids] or [b""], dtype=np.bytes_)
    array = array.astype(f"S{max(array.itemsize, 1)}")
    return array.view(np.uint8).reshape(len(array), -1)[: len(ids)]


def _as_bytes(rows: NDArray[np.uint8], width: int) -> NDArray[Any]:
    return np.ascontiguousarray(rows).view(f"S{rows.shape[1]}").reshape(-1).astype(f"S{width}")


def write_clusters(folder: Path, corpus: Corpus, edges: Iterable[Edge]) -> None:
    """Write the clusters, and for each partition the part of its own documents in them.

    Args:
        folder: For `clusters.jsonl` and `partition-*.json`.
        corpus: The documents.
        edges: Which of them are duplicates.
    """
    neighbours: dict[int, dict[int, float]] = defaultdict(dict)
    for first, second, similarity in edges:
        neighbours[first][second] = neighbours[second][first] = similarity
    roles: list[dict[str, Any]] = [{} for _ in corpus.first_documents[1:]]
    with open(folder / CLUSTERS_FILE, "w", encoding="utf-8") as stream:
        for members in _components(neighbours):
            entries = _judge(members, neighbours, corpus)
            stream.write(json.dumps({"cluster": entries[0]["id"], "members": entries}, ensure_ascii=False) + "\n")
            for rank, entry in zip(members, entries, strict=True):
                document = corpus.by_rank[rank]
                partition = int(np.searchsorted(corpus.first_documents, document, side="right")) - 1
                roles[partition][entry["id"]] = {"cluster": entries[0]["id"], **entry}
    for partition, role in enumerate(roles):
        partition_file(folder, partition).write_text(json.dumps(role, ensure_ascii=False), encoding="utf-8")


def partition_file(folder: Path, partition: int) -> Path:
    """Where the documents of a partition that are in clusters are listed.

    Args:
        folder: Of the decisions.
        partition: Index of the partition.
    """
    return folder / f"partition-{partition:06d}.json"


def judge_by_clusters(document: Document, roles: dict[str, Any], reason: str) -> Verdict:
    """Drop a document that duplicates a kept one; a kept one learns its cluster.

    Args:
        document: Any document of a partition.
        roles: What `partition_file` holds.
        reason: Of the drop.
    """
    role = roles.get(document.id)
    if role is None:
        return document
    found = document.with_metadata(cluster=role["cluster"])
    if "duplicate_of" not in role:
        return found
    return Dropped(found, reason, f"of {role['duplicate_of']}, similarity {role['similarity']:.3f}")


def _components(neighbours: dict[int, dict[int, float]]) -> list[list[int]]:
    """Union-find: groups of connected documents, each in the order of preference, in that of their first."""
    parents = {rank: rank for rank in sorted(neighbours)}

    def root(rank: int) -> int:
        while parents[rank] != rank:
            parents[rank] = rank = parents[parents[rank]]
        return rank

    for rank in parents:
        for other in neighbours[rank]:
            low, high = sorted((root(rank), root(other)))
            parents[high] = low
    groups: dict[int, list[int]] = defaultdict(list)
    for rank in parents:
        groups[root(rank)].append(rank)
    return list(groups.values())


def _judge(members: list[int], neighbours: dict[int, dict[int, float]], corpus: Corpus) -> list[dict[str, Any]]:
    """Each member with what it duplicates, if it is not kept."""
    kept: set[int] = set()
    entries = []
    for rank in members:
        entry: dict[str, Any] = {"id": corpus.id_of(rank), "length": int(corpus.lengths[corpus.by_rank[rank]])}
        originals = [(-similarity, other) for other, similarity in neighbours[rank].items() if other in kept]
        if originals:
            distance, original = min(originals)
            entry |= {"duplicate_of": corpus.id_of(original), "similarity": round(-distance, 6)}
        else:
            kept.add(rank)
        entries.append(entry)
    return entries
