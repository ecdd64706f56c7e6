import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmstack.data.mixture import WEIGHT_UNIT, Mixture, permute, round_weights, tijdeman_order


def triples(mixture: Mixture, count: int) -> list[tuple[int, int, int]]:
    rows = mixture.rows(np.arange(count))
    return list(zip(rows.source.tolist(), rows.epoch.tolist(), rows.start.tolist(), strict=True))


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1))
@settings(max_examples=100, deadline=None)
def test_a_permutation_sends_every_index_somewhere_else_of_the_range_once(size: int, seed: int) -> None:
    found = permute(np.arange(size), np.full(size, seed, dtype=np.uint64), size)
    assert sorted(found.tolist()) == list(range(size))


@pytest.mark.parametrize(("size", "bound"), [(5, 57), (7, 90), (8, 110)])  # p = 1e-6 for (size - 1)^2 degrees
def test_permutations_are_shuffled_evenly(size: int, bound: float) -> None:
    draws = 14_000
    keys = np.random.default_rng(0).integers(0, 2**63, draws).astype(np.uint64)
    counts = np.zeros((size, size))
    for index in range(size):
        np.add.at(counts[index], permute(np.full(draws, index), keys, size), 1)
    chi2 = ((counts - draws / size) ** 2 / (draws / size)).sum()
    assert chi2 < bound


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
    for weights in ((1.0, 0.0), (1.0, 1e-9)):
        with pytest.raises(ValueError, match="Leave the source out"):
            Mixture((100, 100), 4, weights, seed=0)
