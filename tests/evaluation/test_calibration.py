"""Tallies by hand, and against a calibrated coin."""

import json

import numpy as np
import pytest

from lmstack.evaluation.calibration import LENGTH_EDGES, NUM_BINS, PreferenceTally, annotator_agreement


def tally(margins: list[float], lengths: list[int]) -> PreferenceTally:
    made = PreferenceTally()
    made.add_pairs(np.array(margins), np.array(lengths))
    return made


def test_by_hand() -> None:
    made = tally([1.0, -0.5, 2.0, 0.0], [5, 3, -2, 0])
    assert made.num_pairs == 4
    assert made.accuracy == (1 + 0 + 1 + 0.5) / 4
    assert made.longer_wins_accuracy == (1 + 1 + 0 + 0.5) / 4
    assert made.accuracy_where(longer=True) == 0.5
    assert made.accuracy_where(longer=False) == 1.0


def test_the_calibration_error_by_hand() -> None:
    """One bin with a confidence of 0.7311 and an accuracy of 0.75, one with 0.8808 and 0."""
    made = tally([1.0, 1.0, 1.0, -1.0, -2.0], [0] * 5)
    expected = (4 * abs(0.75 - 0.731058578630) + 1 * abs(0.0 - 0.880797077977)) / 5
    assert made.calibration_error == pytest.approx(expected, abs=1e-9)
    bins = made.reliability()
    assert len(bins) == NUM_BINS
    assert [b.num_pairs for b in bins if b.num_pairs] == [4, 1]
    assert next(b for b in bins if b.num_pairs == 4).lower <= 0.7311 < next(b for b in bins if b.num_pairs == 4).upper


def test_scores_that_are_the_true_log_odds_are_calibrated_and_twice_as_large_ones_are_not() -> None:
    generator = np.random.default_rng(0)
    log_odds = generator.normal(0, 1.5, 200_000)
    sign = np.where(generator.random(len(log_odds)) < 1 / (1 + np.exp(-log_odds)), 1.0, -1.0)
    zeros = np.zeros(len(log_odds), dtype=np.int64)
    honest, loud = PreferenceTally(), PreferenceTally()
    honest.add_pairs(log_odds * sign, zeros)
    loud.add_pairs(2 * log_odds * sign, zeros)
    assert honest.calibration_error < 0.005
    assert loud.calibration_error > 0.05
    assert loud.accuracy == honest.accuracy


def test_sums_of_parts_are_the_sums_of_the_whole() -> None:
    generator = np.random.default_rng(1)
    margins, lengths = generator.normal(size=60), generator.integers(-150, 150, 60)
    scores = generator.normal(0, 5, 40)
    whole, parts = PreferenceTally(), [PreferenceTally(), PreferenceTally()]
    whole.add_pairs(margins, lengths)
    whole.add_scores(scores)
    for part, cut in zip(parts, (slice(0, 13), slice(13, None))):
        part.add_pairs(margins[cut], lengths[cut])
        part.add_scores(scores[cut])
    added = PreferenceTally.from_vector(parts[0].to_vector() + parts[1].to_vector())
    np.testing.assert_allclose(added.to_vector(), whole.to_vector(), rtol=1e-12)
    assert added.score_mean == pytest.approx(scores.mean())
    assert added.score_std == pytest.approx(scores.std())
    assert sum(added.report()["scores"]["counts"]) == 40


def test_every_length_difference_is_in_the_bin_that_its_name_says() -> None:
    for difference in (-1000, -101, -100, -31, -30, -11, -10, -1, 0, 1, 10, 11, 30, 31, 100, 101, 1000):
        rows = tally([1.0], [difference]).report()["by_length_difference"]
        (name,) = [row["tokens"] for row in rows if row["num_pairs"]]
        if name.startswith("<"):
            assert difference < LENGTH_EDGES[0]
        elif name.startswith(">"):
            assert difference > LENGTH_EDGES[-1]
        else:
            low, _, high = name.partition(" to ")
            assert int(low) <= difference <= int(high or low)


def test_an_empty_tally_reports_nothing_and_is_valid_json() -> None:
    made = PreferenceTally()
    assert np.isnan(made.accuracy)
    json.dumps(made.report(), allow_nan=False)


def test_the_score_histogram_is_open_at_both_ends() -> None:
    made = PreferenceTally()
    made.add_scores(np.array([-1e6, 0.1, 1e6]))
    counts = made.report()["scores"]["counts"]
    assert (counts[0], counts[-1], sum(counts)) == (1, 1, 3)


def test_agreement_between_annotators() -> None:
    assert annotator_agreement([[1, 1, -1], [1], [-1, -1]]) == pytest.approx(2 / 4)
    assert np.isnan(annotator_agreement([[1], []]))
