import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmstack.data.permutation import permute


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
