import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmstack.data.mixture import WEIGHT_UNIT, Mixture, Phase, round_weights, tijdeman_order


def triples(mixture: Mixture, count: int) -> list[tuple[int, int, int]]:
    rows = mixture.rows(np.arange(count))
    return list(zip(rows.source.tolist(), rows.epoch.tolist(), rows.start.tolist(), strict=True))


@pytest.mark.parametrize("num_tokens", [(100, 37, 53), (64,)])
def test_without_weights_an_epoch_takes_every_row_of_every_source_once(num_tokens: tuple[int, ...]) -> None:
    mixture = Mixture(num_tokens, 4, None, seed=1)
    per_epoch = sum(n // 4 for n in num_tokens)
    epochs = [triples(mixture, 3 * per_epoch)[e * per_epoch : (e + 1) * per_epoch] for e in range(3)]
    for number, epoch in enumerate(epochs):
        assert {e for _, e, _ in epoch} == {number}
        for source, n in enumerate(num_tokens):
            covered = sorted((start + k) % n for s, _, start in epoch if s == source for k in range(4))
            assert len(covered) == len(set(covered)) == n // 4 * 4  # no token twice; less than a row is left out
    assert epochs[0] != [(s, 0, start) for s, _, start in epochs[1]]


def test_every_epoch_cuts_the_rows_at_another_place() -> None:
    mixture = Mixture((400,), 20, None, seed=0)
    rows = mixture.rows(np.arange(20 * 12))
    offsets = [int(rows.start[i * 20] % 20) for i in range(12)]
    assert len(set(offsets)) > 4


def test_with_weights_every_prefix_is_within_one_row_of_its_share_and_sources_go_by_their_own_epochs() -> None:
    weights = (0.61, 0.3, 0.09)
    mixture = Mixture((40, 400, 80), 4, weights, seed=2)
    count = WEIGHT_UNIT + 5000
    rows = mixture.rows(np.arange(count))
    exact = np.array(round_weights(weights)) / WEIGHT_UNIT
    for source in range(3):
        taken = np.cumsum(rows.source == source)
        assert np.abs(taken - exact[source] * np.arange(1, count + 1)).max() <= 1
        own = np.flatnonzero(rows.source == source)
        per_epoch = mixture.rows_per_epoch[source]
        assert rows.epoch[own].tolist() == [i // per_epoch for i in range(len(own))]
        for epoch in range(3):
            starts = rows.start[own][epoch * per_epoch : (epoch + 1) * per_epoch]
            assert len(set(starts.tolist())) == per_epoch


@given(weights=st.lists(st.integers(1, 1000), min_size=1, max_size=6))
@settings(max_examples=12, deadline=None)
def test_no_prefix_of_any_weights_drifts_by_more_than_tijdemans_bound(weights: list[int]) -> None:
    shares = tuple(map(float, weights))
    order, before = tijdeman_order(shares)
    units = np.array(round_weights(shares))
    k = np.arange(1, WEIGHT_UNIT + 1)
    bound = 1 - 1 / max(1, 2 * len(weights) - 2) if len(weights) > 1 else 0
    for source, unit in enumerate(units):
        taken = np.cumsum(order == source)
        assert np.abs(taken - unit / WEIGHT_UNIT * k).max() <= bound + 1e-9
        assert np.array_equal(before[order == source], np.arange(taken[-1]))
        assert taken[-1] == unit  # so the period repeats exactly


@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_rounded_weights_add_up_and_are_within_a_unit(weights: list[float]) -> None:
    units = round_weights(tuple(weights))
    assert sum(units) == WEIGHT_UNIT
    assert all(abs(u - w / sum(weights) * WEIGHT_UNIT) <= 1 for u, w in zip(units, weights, strict=True))


def test_positions_can_be_asked_for_in_any_order_and_any_number() -> None:
    for weights in (None, (0.7, 0.3)):
        mixture = Mixture((100, 57), 5, weights, seed=9)
        whole = mixture.rows(np.arange(200))
        positions = np.random.default_rng(0).permutation(200)
        some = mixture.rows(positions)
        for field in ("source", "epoch", "start"):
            assert np.array_equal(getattr(some, field), getattr(whole, field)[positions])


def test_the_order_depends_on_the_seed_and_on_nothing_of_the_process() -> None:
    code = (
        "import numpy as np; from lmstack.data.mixture import Mixture;"
        "print(Mixture((100, 57), 5, (0.7, 0.3), seed=9).rows(np.arange(40)).start.tolist())"
    )
    found = {
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    }
    here = Mixture((100, 57), 5, (0.7, 0.3), seed=9)
    assert found == {f"{here.rows(np.arange(40)).start.tolist()}\n"}
    other = Mixture((100, 57), 5, (0.7, 0.3), seed=10)
    assert not np.array_equal(other.rows(np.arange(40)).start, here.rows(np.arange(40)).start)


def test_positions_far_along_are_as_quick_as_the_first() -> None:
    rows = Mixture((10**12, 10**11), 2048, (0.9, 0.1), seed=0).rows(np.arange(10**9, 10**9 + 16))
    assert (rows.start < np.array([10**12, 10**11])[rows.source]).all()


def test_sources_and_weights_that_cannot_be_mixed_are_refused() -> None:
    with pytest.raises(ValueError, match="A source of 3 tokens is shorter than one row of sequence_length=4"):
        Mixture((100, 3), 4, None, seed=0)
    with pytest.raises(ValueError, match="Give 0 to leave the source out"):
        Mixture((100, 100), 4, (1.0, 1e-9), seed=0)
    for weights in ((1.0, -1.0), (0.0, 0.0), (1.0, float("inf"))):
        with pytest.raises(ValueError, match="must not be negative, infinite or all 0"):
            Mixture((100, 100), 4, weights, seed=0)
    for starts in ((0,), (8, 8), (9, 3)):
        with pytest.raises(ValueError, match="each must begin after the one before it"):
            Mixture((100, 100), 4, (1.0, 1.0), 0, tuple(Phase(start, (1.0, 1.0)) for start in starts))


def test_a_weight_of_zero_takes_nothing() -> None:
    rows = Mixture((100, 100, 100), 4, (1.0, 0.0, 3.0), seed=0).rows(np.arange(400))
    assert np.bincount(rows.source, minlength=3).tolist() == [100, 0, 300]


PHASED = Mixture(
    (40, 400, 80), 4, (0.6, 0.4, 0.0), 2, (Phase(37, (0.1, 0.2, 0.7)), Phase(WEIGHT_UNIT, (0.0, 0.0, 1.0)))
)


def test_each_phase_keeps_its_own_shares() -> None:
    source = PHASED.rows(np.arange(WEIGHT_UNIT + 900)).source
    for phase, stop in zip(PHASED.phases, (37, WEIGHT_UNIT, WEIGHT_UNIT + 900), strict=True):
        own = source[phase.first_row : stop]
        exact = np.array(round_weights(phase.weights)) / WEIGHT_UNIT
        for s in range(3):
            assert np.abs(np.cumsum(own == s) - exact[s] * np.arange(1, len(own) + 1)).max() <= 1


def test_a_source_goes_on_with_its_epoch_where_a_phase_begins() -> None:
    rows = PHASED.rows(np.arange(900))
    for source, per_epoch in enumerate(PHASED.rows_per_epoch):
        own = np.flatnonzero(rows.source == source)
        assert rows.epoch[own].tolist() == [i // per_epoch for i in range(len(own))]
        for first in range(0, len(own) - per_epoch, per_epoch):  # every row of an epoch once, across the boundary too
            assert len(set(rows.start[own][first : first + per_epoch].tolist())) == per_epoch


def test_rows_around_a_boundary_do_not_depend_on_how_they_are_asked_for() -> None:
    whole = PHASED.rows(np.arange(80))
    one_by_one = [PHASED.rows(np.array([i])) for i in range(80)]
    for field in ("source", "epoch", "start"):
        assert [int(getattr(row, field)[0]) for row in one_by_one] == getattr(whole, field).tolist()
    before = Mixture((40, 400, 80), 4, (0.6, 0.4, 0.0), seed=2).rows(np.arange(37))
    assert np.array_equal(before.start, whole.start[:37])  # what comes later changes nothing before it


@given(first=st.integers(0, 3 * WEIGHT_UNIT), length=st.integers(0, 2000))
@settings(max_examples=30, deadline=None)
def test_rows_are_counted_as_they_are_taken(first: int, length: int) -> None:
    source = PHASED.rows(np.arange(first, first + length)).source
    assert PHASED.rows_taken(first, first + length).tolist() == np.bincount(source, minlength=3).tolist()
