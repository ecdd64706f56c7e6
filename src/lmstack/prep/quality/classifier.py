"""A linear classifier of quality on hashed word n-grams, as fastText's but for its hidden layer (arXiv:1607.01759).

A text is the set of its n-grams, each with weight 1 + log(count), scaled to length 1; a logistic regression says how
likely it is good. Scores are calibrated on texts that the model has not seen (Platt scaling over folds).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmstack.prep.ngrams import ngram_hashes, split_words

Floats = NDArray[np.float64]
_BATCH = 256


@dataclass(frozen=True)
class Features:
    """Texts as rows of a sparse matrix.

    Attributes:
        buckets: Column of each entry.
        values: Value of each entry.
        offsets: Row i is `offsets[i]` to `offsets[i + 1]`.
    """

    buckets: NDArray[np.int64]
    values: NDArray[np.float32]
    offsets: NDArray[np.int64]

    def rows(self, chosen: NDArray[np.int64]) -> "Features":
        """Some of the rows.

        Args:
            chosen: Their numbers.
        """
        spans = [np.arange(self.offsets[i], self.offsets[i + 1]) for i in chosen]
        places = np.concatenate([np.empty(0, dtype=np.int64), *spans])
        lengths = np.diff(self.offsets)[chosen]
        return Features(self.buckets[places], self.values[places], np.concatenate(([0], np.cumsum(lengths))))

    def dot(self, weights: NDArray[np.float32]) -> Floats:
        """The product with a vector.

        Args:
            weights: One for each bucket.
        """
        sums = np.concatenate(([0.0], np.cumsum(weights[self.buckets].astype(np.float64) * self.values)))
        return np.asarray(sums[self.offsets[1:]] - sums[self.offsets[:-1]])


@dataclass(frozen=True)
class QualityModel:
    """A trained classifier.

    Attributes:
        weights: One for each bucket.
        bias: Added to every text's sum.
        slope: Of the calibration.
        intercept: Of the calibration.
        max_ngram: Words of the longest n-gram.
    """

    weights: NDArray[np.float32]
    bias: float
    slope: float
    intercept: float
    max_ngram: int

    def scores(self, texts: Sequence[str]) -> Floats:
        """Probability that each text is good.

        Args:
            texts: Any number; they are worked on a few at a time.
        """
        parts = [np.empty(0)]
        for first in range(0, len(texts), _BATCH):
            found = features(texts[first : first + _BATCH], len(self.weights), self.max_ngram)
            parts.append(sigmoid(self.slope * (found.dot(self.weights) + self.bias) + self.intercept))
        return np.concatenate(parts)

    def save(self, file: str | Path) -> None:
        """Write the model; only the weights that are not zero.

        Args:
            file: Name ending in .npz.
        """
        (used,) = np.nonzero(self.weights)
        settings = {"bias": self.bias, "slope": self.slope, "intercept": self.intercept, "max_ngram": self.max_ngram}
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**settings, "num_buckets": len(self.weights)})
        np.savez_compressed(file, buckets=used, values=self.weights[used], settings=np.array(text))

    @classmethod
    def load(cls, file: str | Path) -> "QualityModel":
        """Read a model.

        Args:
            file: What `save` wrote.

        Raises:
            ValueError: It is not there, or is something else.
        """
        try:
            with np.load(file, allow_pickle=False) as content:
                settings = json.loads(str(content["settings"]))
                weights = np.zeros(settings.pop("num_buckets"), dtype=np.float32)
                weights[content["buckets"]] = content["values"]
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(f"{file} is no quality model: {error}. Make one: lmstack data train_classifier") from None
        return cls(weights=weights, **settings)


def train_classifier(
    texts: Sequence[str],
    labels: NDArray[np.bool_],
    *,
    num_buckets: int = 1 << 18,
    max_ngram: int = 2,
    l2: float = 1e-3,
    num_folds: int = 5,
    seed: int = 0,
) -> tuple[QualityModel, Floats]:
    """Train on all texts, calibrate on folds.

    Args:
        texts: At least `num_folds` of each label.
        labels: True for good ones.
        num_buckets: Columns that n-grams are hashed to.
        max_ngram: Words of the longest n-gram.
        l2: Weight decay, in units of the mean loss.
        num_folds: Parts of the cross-validation.
        seed: Of the folds.

    Returns:
        The model, and the calibrated score of each text from the fold that did not see it.

    Raises:
        ValueError: A label is too rare.
    """
    if min(labels.sum(), (~labels).sum()) < num_folds:
        raise ValueError(
            f"{int(labels.sum())} good and {int((~labels).sum())} bad texts are too few for {num_folds} folds."
        )
    rows = features(texts, num_buckets, max_ngram)
    folds = _folds(labels, num_folds, seed)
    unseen = np.empty(len(texts))
    for fold in range(num_folds):
        (inside,) = np.nonzero(folds != fold)
        (outside,) = np.nonzero(folds == fold)
        weights, bias = _fit(rows.rows(inside), labels[inside], num_buckets, l2)
        unseen[outside] = rows.rows(outside).dot(weights) + bias
    slope, intercept = _fit_calibration(unseen, labels)
    weights, bias = _fit(rows, labels, num_buckets, l2)
    model = QualityModel(weights, bias, slope, intercept, max_ngram)
    return model, sigmoid(slope * unseen + intercept)


def features(texts: Sequence[str], num_buckets: int, max_ngram: int) -> Features:
    """The n-grams of texts as a sparse matrix with rows of length 1.

    Args:
        texts: The texts.
        num_buckets: Columns.
        max_ngram: Words of the longest n-gram.
    """
    words = split_words(texts)
    rows: list[list[NDArray[np.uint64]]] = [[] for _ in texts]
    for n in range(1, max_ngram + 1):
        hashes, offsets = ngram_hashes(words, n)
        for number, row in enumerate(rows):
            row.append(hashes[offsets[number] : offsets[number + 1]])
    buckets, values, lengths = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.float32)], [0]
    for row in rows:
        found, counts = np.unique(np.concatenate(row) % np.uint64(num_buckets), return_counts=True)
        weights = 1 + np.log(counts)
        buckets.append(found.astype(np.int64))
        values.append((weights / max(float(np.linalg.norm(weights)), 1e-9)).astype(np.float32))
        lengths.append(len(found))
    return Features(np.concatenate(buckets), np.concatenate(values), np.cumsum(lengths))


def area_under_curve(scores: Floats, labels: NDArray[np.bool_]) -> float:
    """Probability that a good text has a higher score than a bad one; ties count half.

    Args:
        scores: Of each text.
        labels: True for good ones.
    """
    _, rank, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2  # of equal scores, the mean of their places
    num_good, num_bad = int(labels.sum()), int((~labels).sum())
    return float((middle[rank][labels].sum() - num_good * (num_good + 1) / 2) / (num_good * num_bad))


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow.

    Args:
        x: Any numbers.
    """
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def _folds(labels: NDArray[np.bool_], num_folds: int, seed: int) -> NDArray[np.int64]:
    """A fold for each text, with as many of each label in every fold."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    folds = np.empty(len(labels), dtype=np.int64)
    folds[order] = np.arange(len(labels)) % num_folds
    return folds


def _fit(rows: Features, labels: NDArray[np.bool_], num_buckets: int, l2: float) -> tuple[NDArray[np.float32], float]:
    import torch
    from torch.nn import functional as F

    used, columns = np.unique(rows.buckets, return_inverse=True)  # the others keep weight 0
    buckets, values = torch.from_numpy(columns), torch.from_numpy(rows.values)
    offsets, targets = torch.from_numpy(rows.offsets[:-1]), torch.from_numpy(labels.astype(np.float32))
    weights = torch.zeros(len(used), 1, requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer: Any = torch.optim.LBFGS([weights, bias], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = F.embedding_bag(buckets, weights, offsets, mode="sum", per_sample_weights=values).squeeze(1) + bias
        loss = F.binary_cross_entropy_with_logits(logits, targets) + 0.5 * l2 * weights.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    fitted = np.zeros(num_buckets, dtype=np.float32)
    fitted[used] = weights.detach().squeeze(1).numpy()
    return fitted, float(bias.detach())


def _fit_calibration(logits: Floats, labels: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and intercept of the logistic curve through unseen logits (Platt 1999): a regression with one column."""
    scale = max(float(np.abs(logits).max()), 1e-9)
    column = Features(
        np.zeros(len(logits), dtype=np.int64), (logits / scale).astype(np.float32), np.arange(len(logits) + 1)
    )
    weights, intercept = _fit(column, labels, 1, l2=1e-4)
    return float(weights[0]) / scale, intercept
