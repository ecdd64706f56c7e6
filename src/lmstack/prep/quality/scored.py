"""Stages that score all documents before they judge one: by a trained classifier, or by a language model of ours."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from lmstack.prep.document import Document, Dropped, Verdict
from lmstack.prep.quality.classifier import QualityModel
from lmstack.prep.quality.perplexity import BitsPerByte
from lmstack.prep.stage import Context, Filter, StageSettings

Bucket = Literal["head", "middle", "tail"]
BUCKETS: tuple[Bucket, ...] = ("head", "middle", "tail")
_THRESHOLDS_FILE = "thresholds.json"
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class QualityClassifier(StageSettings):
    """Keeps the documents that a classifier finds best; notes each one's `quality`, a probability.

    Attributes:
        kind: `classifier`.
        model: File that `lmstack data train_classifier` wrote.
        keep_fraction: Share of the documents to keep, by score; null goes by `min_score`.
        min_score: Smallest score to keep; null goes by `keep_fraction`. One of the two is given.
    """

    kind: Literal["classifier"] = "classifier"
    model: str
    keep_fraction: float | None = None
    min_score: float | None = None

    def __post_init__(self) -> None:
        if (self.keep_fraction is None) == (self.min_score is None):
            raise ValueError(
                f"classifier: keep_fraction={self.keep_fraction} and min_score={self.min_score}. Give one of the two."
            )
        if self.keep_fraction is not None and not 0 < self.keep_fraction <= 1:
            raise ValueError(f"classifier.keep_fraction={self.keep_fraction} is not in (0, 1]. Use one such as 0.3.")

    def survey(self, documents: Iterable[Document], file: Path) -> None:
        """Write the score of every document.

        Args:
            documents: Of the partition, in order.
            file: To write.
        """
        _write_scores(documents, lambda texts: self._model.scores(texts).tolist(), file)

    def decide(self, surveys: Sequence[Path], folder: Path) -> None:
        """Find the score from which documents are kept.

        Args:
            surveys: Of the partitions, in order.
            folder: For the decisions.
        """
        scores = _gather(surveys, folder)
        threshold = self.min_score
        if threshold is None:
            assert self.keep_fraction is not None
            threshold = float(np.quantile(scores, 1 - self.keep_fraction)) if len(scores) else 0.0
        (folder / _THRESHOLDS_FILE).write_text(json.dumps([threshold]))

    def filter(self, context: Context) -> Filter:
        """The function that judges, in the order of the survey.

        Args:
            context: Of the partition.
        """
        scores, (threshold,) = _decisions(context)

        def judge(document: Document) -> Verdict:
            score = next(scores)
            found = document.with_metadata(quality=round(score, 4))
            if score >= threshold:
                return found
            return Dropped(found, "low quality score", f"{score:.3f}, less than {threshold:.3f}")

        return judge

    def input_files(self) -> list[Path]:
        """The classifier."""
        return [Path(self.model)]

    @cached_property
    def _model(self) -> QualityModel:
        return QualityModel.load(self.model)


@dataclass(frozen=True, kw_only=True)
class PerplexityBuckets(StageSettings):
    """Sorts documents into head, middle and tail by what a language model makes of them, as CCNet does.

    Wenzek et al. 2019, arXiv:1911.00359, section 4. In bits per byte, which does not depend on the tokenizer. What
    the model finds too easy may be boilerplate and what it finds hard may be rare: look before you drop.

    Attributes:
        kind: `perplexity`.
        model: A run, checkpoint or weights folder of lmstack, or a Hugging Face folder with its tokenizer.json.
        keep: Buckets to keep.
        boundaries: Shares of the documents at which `middle` and `tail` begin.
        max_tokens: Tokens looked at, from the beginning of each document.
    """

    kind: Literal["perplexity"] = "perplexity"
    model: str
    keep: list[Bucket] = field(default_factory=lambda: list(BUCKETS))
    boundaries: tuple[float, float] = (1 / 3, 2 / 3)
    max_tokens: int = 512

    def __post_init__(self) -> None:
        if not 0 < self.boundaries[0] <= self.boundaries[1] < 1:
            raise ValueError(f"perplexity.boundaries={self.boundaries} do not rise within (0, 1). Use [0.33, 0.67].")
        if not self.keep or self.max_tokens < 2:
            raise ValueError(
                f"perplexity: keep={self.keep}, max_tokens={self.max_tokens}: keep a bucket, and 2 tokens."
            )

    def survey(self, documents: Iterable[Document], file: Path) -> None:
        """Write the bits per byte of every document.

        Args:
            documents: Of the partition, in order.
            file: To write.
        """
        _write_scores(documents, lambda texts: [self._scorer(text) for text in texts], file)

    def decide(self, surveys: Sequence[Path], folder: Path) -> None:
        """Find the boundaries.

        Args:
            surveys: Of the partitions, in order.
            folder: For the decisions.
        """
        scores = _gather(surveys, folder)
        found = np.quantile(scores, self.boundaries).tolist() if len(scores) else [0.0, 0.0]
        (folder / _THRESHOLDS_FILE).write_text(json.dumps(found))

    def filter(self, context: Context) -> Filter:
        """The function that sorts, in the order of the survey.

        Args:
            context: Of the partition.
        """
        scores, (first, second) = _decisions(context)

        def judge(document: Document) -> Verdict:
            bits = next(scores)
            bucket = BUCKETS[(bits >= first) + (bits >= second)]
            context.counts[f"bucket {bucket}"] += 1
            found = document.with_metadata(bits_per_byte=round(bits, 4), perplexity_bucket=bucket)
            return (
                found if bucket in self.keep else Dropped(found, f"perplexity: {bucket}", f"{bits:.3f} bits per byte")
            )

        return judge

    def input_files(self) -> list[Path]:
        """Everything in the folder of the weights; of a run, its newest checkpoint.

        Raises:
            ValueError: There are no weights.
        """
        from lmstack.models.checkpoint import weights_folder

        return [file for file in weights_folder(self.model).rglob("*") if file.is_file()]

    @cached_property
    def _scorer(self) -> BitsPerByte:
        return BitsPerByte(self.model, self.max_tokens)


def _write_scores(documents: Iterable[Document], score: Callable[[list[str]], list[float]], file: Path) -> None:
    scores: list[float] = []
    texts: list[str] = []
    for document in documents:
        texts.append(document.text)
        if len(texts) == _BATCH:
            scores += score(texts)
            texts = []
    if texts:
        scores += score(texts)
    with open(file, "wb") as stream:
        np.save(stream, np.array(scores, dtype=np.float64))


def _gather(surveys: Sequence[Path], folder: Path) -> "np.ndarray":
    """All scores; each partition's are kept with the decisions."""
    parts = [np.empty(0)]
    for partition, survey in enumerate(surveys):
        parts.append(np.load(survey))
        np.save(_scores_file(folder, partition), parts[-1])
    return np.concatenate(parts)


def _decisions(context: Context) -> tuple[Iterator[float], list[float]]:
    scores = np.load(_scores_file(context.folder, context.partition)).tolist()
    return iter(scores), json.loads((context.folder / _THRESHOLDS_FILE).read_text())


def _scores_file(folder: Path, partition: int) -> Path:
    return folder / f"scores-{partition:06d}.npy"
