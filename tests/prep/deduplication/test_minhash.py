"""MinHash against sets compared by brute force, and the S-curve against simulated documents."""

import numpy as np
import pytest

from lmstack.prep.deduplication.minhash import band_keys, candidate_prob, jaccard, shingle_sets, signatures


def _pairs_of_similarity(similarity: float, count: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sets of 400 random hashes in pairs that share just so many."""
    shared = round(2 * 400 * similarity / (1 + similarity))
    sets = []
    for _ in range(count):
        values = draw.choice(1 << 32, size=800 - shared, replace=False).astype(np.uint32)
        sets += [np.sort(values[:400]), np.sort(values[400 - shared :])]
    return np.concatenate(sets), np.arange(2 * count + 1) * 400


def test_shingles_are_the_set_of_ngrams() -> None:
    shingles, offsets = shingle_sets(["a b a b a b", "", "a b"], 2)
    assert np.diff(offsets).tolist() == [2, 0, 1]
    assert jaccard(shingles[:2], shingles[2:]) == 0.5
    assert np.all(np.diff(shingles[:2].astype(np.int64)) > 0)


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.8, 0.95])
def test_signatures_agree_as_often_as_sets_overlap(similarity: float) -> None:
    shingles, offsets = _pairs_of_similarity(similarity, 60, np.random.default_rng(0))
    true = jaccard(shingles[:400], shingles[400:800])
    rows = signatures(shingles, offsets, num_hashes=256, seed=1)
    estimate = float((rows[::2] == rows[1::2]).mean())
    assert estimate == pytest.approx(true, abs=4 * (true * (1 - true) / (60 * 256)) ** 0.5)  # four standard errors


@pytest.mark.parametrize("similarity", [0.4, 0.6, 0.7])
def test_candidates_are_as_frequent_as_the_closed_form_says(similarity: float) -> None:
    num_pairs = 300
    shingles, offsets = _pairs_of_similarity(similarity, num_pairs, np.random.default_rng(2))
    true = jaccard(shingles[:400], shingles[400:800])
    rows = signatures(shingles, offsets, num_hashes=60, seed=3)
    keys = band_keys(rows, 12)
    assert keys.shape == (12, 2 * num_pairs)
    found = float((keys[:, ::2] == keys[:, 1::2]).any(axis=0).mean())
    expected = candidate_prob(true, num_bands=12, rows_per_band=5)
    assert found == pytest.approx(expected, abs=4 * (expected * (1 - expected) / num_pairs) ** 0.5)


def test_the_s_curve_by_hand() -> None:
    assert candidate_prob(0.5, num_bands=2, rows_per_band=2) == 1 - 0.75**2
    assert candidate_prob(0.0, num_bands=3, rows_per_band=2) == 0.0
    assert candidate_prob(1.0, num_bands=3, rows_per_band=2) == 1.0


def test_a_band_differs_when_any_of_its_hashes_does() -> None:
    rows = np.array([[1, 2, 3, 4], [1, 2, 4, 3], [2, 1, 3, 4]], dtype=np.uint32)
    first, second = band_keys(rows, 2)
    assert first[0] == first[1] != first[2]
    assert second[0] == second[2] != second[1]


def test_signatures_do_not_depend_on_the_batch() -> None:
    texts = ["one two three four five six", "", "seven", "a b c d e f g h"]
    together, offsets = shingle_sets(texts, 3)
    rows = signatures(together, offsets, num_hashes=8, seed=0)
    for row, text in zip(rows, texts, strict=True):
        np.testing.assert_array_equal(signatures(*shingle_sets([text], 3), num_hashes=8, seed=0)[0], row)
