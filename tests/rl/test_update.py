"""Rows of minibatches: each once an epoch, the same minibatches for any number of ranks."""

from itertools import chain

import pytest

from lmstack.rl.update import UpdateConfig, minibatch_rows

CONFIG = UpdateConfig(num_epochs=2, num_minibatches=3)


def rows_of(rank: int, counts: list[int], seed: int = 4) -> list[list[int]]:
    """Row numbers over all ranks, by minibatch."""
    first = sum(counts[:rank])
    return [sorted((rows + first).tolist()) for rows in minibatch_rows(CONFIG, counts, rank, (seed, 1))]


def test_each_row_is_in_one_minibatch_of_an_epoch_for_any_number_of_ranks() -> None:
    whole = rows_of(0, [10])
    assert [len(rows) for rows in whole] == [4, 3, 3] * 2
    for epoch in (whole[:3], whole[3:]):
        assert sorted(chain(*epoch)) == list(range(10))
    assert whole[:3] != whole[3:]
    parts = [rows_of(rank, [3, 0, 7]) for rank in range(3)]
    assert [sorted(chain(*rows)) for rows in zip(*parts, strict=True)] == whole
    assert rows_of(0, [10], seed=5) != whole


def test_of_fewer_rows_than_minibatches_each_is_one() -> None:
    """As in the last rollout of a run of 65 prompts, 64 a rollout."""
    parts = [rows_of(rank, [1, 0, 1]) for rank in range(3)]
    found = [sorted(chain(*rows)) for rows in zip(*parts, strict=True)]
    assert sorted(found[:2]) == sorted(found[2:]) == [[0], [1]]


def test_an_update_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"update\.num_epochs=0: must be above 0"):
        UpdateConfig(num_epochs=0)
