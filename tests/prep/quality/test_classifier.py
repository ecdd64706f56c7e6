"""The classifier: separable texts are told apart, scores are probabilities, files come back as they were."""

import random
from pathlib import Path

import numpy as np
import pytest

from lmstack.prep.document import Document, Dropped
from lmstack.prep.quality.classifier import QualityModel, area_under_curve, features, train_classifier
from lmstack.prep.quality.scored import QualityClassifier
from lmstack.prep.stage import Context

GOOD = ["theory", "experiment", "result", "evidence", "measure", "explain", "because", "therefore"]
BAD = ["buy", "cheap", "click", "free", "casino", "winner", "offer", "now"]


def texts(number: int, seed: int, noise: float = 0.3) -> tuple[list[str], np.ndarray]:
    draw = random.Random(seed)
    labels = np.array([draw.random() < 0.5 for _ in range(number)])
    made = []
    for label in labels:
        own, other = (GOOD, BAD) if label else (BAD, GOOD)
        made.append(" ".join(draw.choice(other if draw.random() < noise else own) for _ in range(12)))
    return made, labels


def test_it_tells_texts_apart_that_it_has_not_seen() -> None:
    model, unseen = train_classifier(*texts(120, seed=0), num_buckets=1 << 12)
    other, labels = texts(200, seed=1)
    assert area_under_curve(model.scores(other), labels) > 0.9  # 0.94 to 0.98 by seed
    assert area_under_curve(unseen, texts(120, seed=0)[1]) > 0.9


def test_scores_are_calibrated() -> None:
    model, _ = train_classifier(*texts(400, seed=2, noise=0.42), num_buckets=1 << 12)
    other, labels = texts(2000, seed=3, noise=0.42)
    scores = model.scores(other)
    for low in (0.0, 0.25, 0.5, 0.75):
        chosen = (scores >= low) & (scores < low + 0.25)
        assert chosen.sum() > 50
        assert labels[chosen].mean() == pytest.approx(scores[chosen].mean(), abs=0.12)  # 50 to 1000 coins a bin


def test_labels_by_chance_are_not_learnt() -> None:
    made, _ = texts(120, seed=4)
    labels = np.random.default_rng(0).random(120) < 0.5
    _, unseen = train_classifier(made, labels, num_buckets=1 << 12)
    assert 0.3 < area_under_curve(unseen, labels) < 0.7


def test_a_row_is_a_bag_of_hashed_ngrams_of_length_one() -> None:
    found = features(["a b a", "", "a b"], 1 << 16, 2)
    assert np.diff(found.offsets).tolist() == [4, 0, 3]  # a, b, "a b", "b a"; nothing; a, b, "a b"
    assert np.linalg.norm(found.values[:4]) == pytest.approx(1.0, abs=1e-6)
    assert set(found.buckets[4:]) <= set(found.buckets[:4])


def test_the_area_counts_pairs_in_the_right_order() -> None:
    scores, labels = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    assert area_under_curve(scores, labels) == pytest.approx((2 + 1 + 0.5) / 4)


def test_a_model_comes_back_from_its_file(tmp_path: Path) -> None:
    model, _ = train_classifier(*texts(60, seed=5), num_buckets=1 << 10)
    model.save(tmp_path / "model.npz")
    again = QualityModel.load(tmp_path / "model.npz")
    assert again.scores(GOOD).tolist() == model.scores(GOOD).tolist()


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.npz").write_bytes(b"something else")
    with pytest.raises(ValueError, match="no quality model"):
        QualityModel.load(tmp_path / "model.npz")


def test_too_few_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        train_classifier(["a", "b"], np.array([True, False]))


def test_the_stage_keeps_the_share_asked_for(tmp_path: Path) -> None:
    model, _ = train_classifier(*texts(120, seed=0), num_buckets=1 << 12)
    model.save(tmp_path / "model.npz")
    made, _ = texts(40, seed=7)
    parts = [[Document(text, str(n), "s") for n, text in enumerate(made[k::2])] for k in range(2)]
    stage = QualityClassifier(model=str(tmp_path / "model.npz"), keep_fraction=0.25)
    surveys = [tmp_path / f"survey{k}" for k in range(2)]
    for part, survey in zip(parts, surveys, strict=True):
        stage.survey(part, survey)
    (tmp_path / "decisions").mkdir()
    stage.decide(surveys, tmp_path / "decisions")
    kept, dropped = [], []
    for number, part in enumerate(parts):
        judge = stage.filter(Context(number, tmp_path / "decisions"))
        for document in part:
            verdict = judge(document)
            (dropped if isinstance(verdict, Dropped) else kept).append(verdict)
    assert len(kept) == 10
    best = min(document.metadata["quality"] for document in kept if isinstance(document, Document))
    assert all(drop.document.metadata["quality"] <= best for drop in dropped if isinstance(drop, Dropped))


def test_one_threshold_is_given() -> None:
    with pytest.raises(ValueError, match="one of the two"):
        QualityClassifier(model="x", keep_fraction=0.2, min_score=0.5)
