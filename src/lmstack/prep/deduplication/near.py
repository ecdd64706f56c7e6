"""The stage that drops near-duplicates: MinHash finds candidates, their true similarity decides."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmstack.prep.deduplication.arrays import ArrayFile, write_arrays
from lmstack.prep.deduplication.candidates import candidate_pairs, verify
from lmstack.prep.deduplication.clusters import Corpus, id_array, judge_by_clusters, partition_file, write_clusters
from lmstack.prep.deduplication.minhash import band_keys, candidate_prob, shingle_sets, signatures
from lmstack.prep.document import Document
from lmstack.prep.ngrams import batches
from lmstack.prep.stage import Context, Filter, StageSettings

S_CURVE_FILE = "s_curve.json"
REASON = "near duplicate"


@dataclass(frozen=True, kw_only=True)
class NearDuplicates(StageSettings):
    """Drop documents that share most of their n-grams with one that is kept.

    Candidates share all hashes of one band, which documents of similarity s do with probability 1 - (1 - s^r)^b; the
    Jaccard similarity of their n-gram sets is then computed, so none is dropped on an estimate. What is kept of a
    cluster is told in `clusters.py`.

    Attributes:
        kind: `near_duplicates`.
        threshold: Least Jaccard similarity of duplicates, in (0, 1].
        ngram: Words of an n-gram; a Chinese character is a word.
        num_bands: Bands b.
        rows_per_band: Hashes of a band r.
        seed: Of the hash functions.
    """

    kind: Literal["near_duplicates"] = "near_duplicates"
    threshold: float = 0.8
    ngram: int = 5
    num_bands: int = 20
    rows_per_band: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} is not in (0, 1]. Use a similarity such as 0.8.")
        for name in ("ngram", "num_bands", "rows_per_band"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is less than 1. Use at least 1.")

    def s_curve(self) -> dict[float, float]:
        """Probability that a pair becomes a candidate, by similarity."""
        steps = [step / 20 for step in range(21)]
        bands = {"num_bands": self.num_bands, "rows_per_band": self.rows_per_band}
        return {step: candidate_prob(step, **bands) for step in steps}

    def survey(self, documents: Iterable[Document], file: Path) -> None:
        """Write the n-gram sets and band keys of a partition.

        Args:
            documents: Of the partition.
            file: To write.
        """
        ids: list[str] = []
        lengths: list[int] = []
        sets, sizes = [np.empty(0, dtype=np.uint32)], [np.zeros(1, dtype=np.int64)]
        bands = [np.empty((self.num_bands, 0), dtype=np.uint64)]
        for batch in batches(documents):
            ids += [document.id for document in batch]
            lengths += [len(document.text) for document in batch]
            shingles, offsets = shingle_sets([document.text for document in batch], self.ngram)
            num_hashes = self.num_bands * self.rows_per_band
            rows = signatures(shingles, offsets, num_hashes=num_hashes, seed=self.seed)
            sets.append(shingles)
            sizes.append(np.diff(offsets))
            bands.append(band_keys(rows, self.num_bands))
        arrays: dict[str, NDArray[Any]] = {
            "ids": id_array(ids),
            "lengths": np.array(lengths, dtype=np.uint32),
            "shingles": np.concatenate(sets),
            "offsets": np.cumsum(np.concatenate(sizes)),
            "bands": np.concatenate(bands, axis=1),
        }
        write_arrays(file, arrays)

    def decide(self, surveys: Sequence[Path], folder: Path) -> None:
        """Compare all documents; write clusters, what each partition drops, and the S-curve.

        Args:
            surveys: Of the partitions, in order.
            folder: For the decisions.
        """
        files = [ArrayFile(survey) for survey in surveys]
        corpus = Corpus.read(files)
        pairs = candidate_pairs(files, corpus.ranks, self.num_bands)
        write_clusters(folder, corpus, verify(files, pairs, corpus.by_rank, self.threshold))
        curve = {f"{similarity:.2f}": prob for similarity, prob in self.s_curve().items()}
        (folder / S_CURVE_FILE).write_text(json.dumps({"candidates": len(pairs), **curve}, indent=1))

    def filter(self, context: Context) -> Filter:
        """The judge of a partition's documents.

        Args:
            context: Of the partition.
        """
        roles = json.loads(partition_file(context.folder, context.partition).read_text(encoding="utf-8"))
        return lambda document: judge_by_clusters(document, roles, REASON)
