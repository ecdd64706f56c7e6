"""Clusters: what is connected, what is kept of it, and the files that say so."""

import json
from pathlib import Path

import numpy as np

from lmstack.prep.deduplication.arrays import ArrayFile, write_arrays
from lmstack.prep.deduplication.clusters import (
    Corpus,
    Edge,
    id_array,
    judge_by_clusters,
    partition_file,
    write_clusters,
)
from lmstack.prep.document import Document, Dropped


def _corpus(folder: Path, *partitions: dict[str, int]) -> Corpus:
    """Lengths by id, partition by partition."""
    files = []
    for number, lengths in enumerate(partitions):
        arrays = {"ids": id_array(list(lengths)), "lengths": np.array([*lengths.values()], dtype=np.uint32)}
        write_arrays(folder / f"survey-{number}", arrays)
        files.append(ArrayFile(folder / f"survey-{number}"))
    return Corpus.read(files)


def test_the_longest_comes_first_and_of_equals_the_smallest_id(tmp_path: Path) -> None:
    corpus = _corpus(tmp_path, {"b": 5, "long-id": 9}, {}, {"a": 5, "c": 7})
    assert [corpus.id_of(rank) for rank in range(4)] == ["long-id", "c", "a", "b"]
    assert corpus.ranks.tolist() == [3, 0, 2, 1]
    assert corpus.first_documents.tolist() == [0, 2, 2, 4]


def test_clusters_are_written_for_the_eye_and_for_each_partition(tmp_path: Path) -> None:
    corpus = _corpus(tmp_path, {"a": 9, "d": 6, "f": 1}, {"b": 8, "c": 7, "e": 5})
    edges = [Edge(0, 1, 0.9), Edge(1, 2, 0.8), Edge(3, 4, 1.0)]  # a-b-c in a chain, d-e
    write_clusters(tmp_path, corpus, edges)
    first, second = map(json.loads, (tmp_path / "clusters.jsonl").read_text().splitlines())
    assert first == {
        "cluster": "a",
        "members": [
            {"id": "a", "length": 9},
            {"id": "b", "length": 8, "duplicate_of": "a", "similarity": 0.9},
            {"id": "c", "length": 7},
        ],
    }
    assert [member["id"] for member in second["members"]] == ["d", "e"]
    roles = json.loads(partition_file(tmp_path, 1).read_text())
    assert {name: role["cluster"] for name, role in roles.items()} == {"b": "a", "c": "a", "e": "d"}
    verdict = judge_by_clusters(Document("text", "b", "web"), roles, "copy")
    assert isinstance(verdict, Dropped)
    assert (verdict.reason, verdict.detail) == ("copy", "of a, similarity 0.900")
    assert judge_by_clusters(Document("text", "c", "web"), roles, "copy") == Document(
        "text", "c", "web", {"cluster": "a"}
    )


def test_a_duplicate_names_the_kept_document_that_it_is_most_like(tmp_path: Path) -> None:
    corpus = _corpus(tmp_path, {"a": 9, "b": 8, "c": 7})
    write_clusters(tmp_path, corpus, [Edge(0, 2, 0.8), Edge(1, 2, 0.9)])
    roles = json.loads(partition_file(tmp_path, 0).read_text())
    assert roles["c"]["duplicate_of"] == "b"
    assert "duplicate_of" not in roles["b"]
