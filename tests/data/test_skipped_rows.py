"""An order of rows without some of its stretches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmstack.data.item_loader import EpochPlan, ItemSteps
from lmstack.data.rank import Rank
from lmstack.data.skipped_rows import SkippedRows
from lmstack.data.step_loader import StepLoader

WINDOWS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=5)


@given(WINDOWS)
def test_it_is_the_order_with_those_rows_deleted(windows: list[tuple[int, int]]) -> None:
    skipped = SkippedRows()
    for start, length in windows:
        skipped = skipped.without(start, start + length)
    gone = {row for start, length in windows for row in range(start, start + length)}
    left = [row for row in range(200) if row not in gone]
    assert skipped.places(np.arange(len(left))).tolist() == left
    assert {row for start, stop in skipped.windows for row in range(start, stop)} == gone


def test_a_window_of_what_is_taken_is_named_by_its_places() -> None:
    skipped = SkippedRows(((4, 8),))
    assert skipped.window(0, 4) == (0, 4)
    assert skipped.window(2, 6) == (2, 10)  # it spans what is left out already
    assert skipped.window(4, 8) == (8, 12)


@pytest.mark.parametrize("windows", [((5, 5),), ((5, 4),), ((4, 8), (8, 9)), ((4, 8), (1, 2)), ((-1, 2),)])
def test_windows_that_are_no_windows_are_refused(windows: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="must be sorted, apart, and not empty"):
        SkippedRows(windows)


def loader(rank: Rank | None = None, num_epochs: float | None = 2.0) -> StepLoader:
    plan = EpochPlan(np.arange(10, 23), 4, num_epochs, seed=5)
    return StepLoader(ItemSteps(plan, rank or Rank(), lambda share: list(share.items)), {"data": "abc"})


def test_a_loader_leaves_the_window_out_and_takes_as_many_rows_as_before() -> None:
    plain, one = list(loader(num_epochs=4.0)), loader()
    order = [item for step in plain for item in step]
    steps = iter(one)
    taken = [next(steps), next(steps)]
    one.skip(8, 15)
    taken += list(one)  # an iterator made after the skip goes on from there
    assert [item for step in taken for item in step] == order[:8] + order[15 : 26 + 7]
    assert len(taken) == len(one) == 7


def test_a_state_carries_what_is_left_out_and_goes_on_on_another_number_of_ranks() -> None:
    one = loader()
    one.skip(6, 15)
    whole = list(one)
    for done in range(len(whole)):
        first = loader()
        first.skip(6, 15)
        steps = iter(first)
        for _ in range(done):
            next(steps)
        ranks = [loader(Rank(i, 2)) for i in range(2)]
        for rank in ranks:
            rank.load_state_dict(first.state_dict())
        joined = [a + b for a, b in zip(*ranks, strict=True)]
        assert joined == whole[done:]


def test_what_was_handed_out_cannot_be_skipped() -> None:
    one = loader()
    next(iter(one))
    with pytest.raises(ValueError, match=r"Rows 3 to 6 cannot be skipped: all before 4"):
        one.skip(3, 6)


def test_a_state_from_before_there_was_anything_to_skip_is_taken() -> None:
    one = loader()
    state = one.state_dict()
    del state["skipped"]
    one.load_state_dict(state)
    assert one.skipped == SkippedRows()


def test_tokens_are_those_of_the_items_that_are_taken() -> None:
    one = loader()
    plan: EpochPlan = one.rows.plan  # type: ignore[assignment]
    one.skip(5, 16)
    seen = 0
    for step, items in enumerate(one, start=1):
        seen += sum(int(plan.item_tokens[item]) for item in items)
        assert plan.tokens_at_step(step) == seen
