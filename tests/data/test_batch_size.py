import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmstack.data.batch_size import BatchSizePlan, BatchSizeWarmup


def sizes(plan: BatchSizePlan, count: int) -> list[int]:
    """Step by step, as a loader goes."""
    found, position = [], 0
    while len(found) < count and (size := plan.batch_size_at(position)):
        found.append(size)
        position += size
    return found


def test_without_warmup_all_steps_are_full_but_the_last() -> None:
    plan = BatchSizePlan(global_batch_size=4, sequence_length=10, max_tokens=95)
    assert sizes(plan, 9) == [4, 4, 2]
    assert (plan.num_rows, plan.num_steps) == (10, 3)
    assert [plan.tokens_at_step(k) for k in range(5)] == [0, 40, 80, 95, 95]
    assert [plan.samples_at_step(k) for k in range(5)] == [0, 4, 8, 10, 10]
    assert [plan.steps_for_tokens(n) for n in (0, 1, 40, 41, 95)] == [0, 1, 1, 2, 3]


def test_warmup_in_steps_grows_evenly_to_the_full_size() -> None:
    plan = BatchSizePlan(8, 10, warmup=BatchSizeWarmup(2, "6 steps"))
    assert sizes(plan, 9) == [2, 2, 4, 4, 6, 6, 8, 8, 8]
    assert plan.samples_at_step(7) == 32
    assert plan.tokens_at_step(3) == 80
    assert plan.num_steps is None


def test_warmup_in_tokens_grows_when_the_tokens_are_consumed() -> None:
    plan = BatchSizePlan(6, 10, warmup=BatchSizeWarmup(2, "100 tokens"))
    # Levels begin at 0, 50 and 100 tokens: 20 a step until 60, then 40 a step until 100, then 60.
    assert sizes(plan, 6) == [2, 2, 2, 4, 6, 6]


def test_warmup_as_a_share_of_the_run_is_the_same_as_its_tokens() -> None:
    share = BatchSizePlan(8, 10, max_tokens=2000, warmup=BatchSizeWarmup(2, "25%"))
    tokens = BatchSizePlan(8, 10, max_tokens=2000, warmup=BatchSizeWarmup(2, "500 tokens"))
    assert sizes(share, 100) == sizes(tokens, 100)
    assert sizes(share, 100)[0] == 2


def test_a_warmup_shorter_than_its_levels_skips_some() -> None:
    assert sizes(BatchSizePlan(8, 10, warmup=BatchSizeWarmup(1, "2 steps")), 4) == [1, 4, 8, 8]
    assert sizes(BatchSizePlan(8, 10, warmup=BatchSizeWarmup(1, "0 steps")), 2) == [8, 8]


@given(
    start=st.integers(1, 4),
    levels=st.integers(1, 6),
    length=st.integers(1, 50),
    max_tokens=st.integers(1, 1500),
    duration=st.one_of(
        st.integers(0, 30).map(lambda n: f"{n} steps"),
        st.integers(0, 9000).map(lambda n: f"{n} tokens"),
        st.integers(0, 100).map(lambda n: f"{n}%"),
    ),
)
@settings(max_examples=60, deadline=None)
def test_counts_agree_with_going_step_by_step(
    start: int, levels: int, length: int, max_tokens: int, duration: str
) -> None:
    plan = BatchSizePlan(start * levels, length, max_tokens, BatchSizeWarmup(start, duration))
    found = sizes(plan, 10**6)
    assert plan.num_steps == len(found)
    assert sum(found) == plan.num_rows == plan.samples_at_step(len(found))
    assert plan.tokens_at_step(len(found)) == max_tokens
    samples = 0
    for step, size in enumerate(found):
        assert plan.samples_at_step(step) == samples
        tokens = plan.tokens_at_step(step)
        assert plan.steps_for_tokens(tokens) == step
        assert plan.steps_for_tokens(tokens + 1) == step + 1
        samples += size
    assert sorted(found[:-1]) == found[:-1]


def test_beyond_the_end_of_a_run_tokens_take_full_steps() -> None:
    assert BatchSizePlan(4, 10, max_tokens=40).steps_for_tokens(400) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"global_batch_size": 0}, "global_batch_size=0 is not positive"),
        ({"max_tokens": 0}, "max_tokens=0 is not positive"),
        ({"warmup": BatchSizeWarmup(3, "5 steps")}, "batch_size_warmup.start=3 does not divide global_batch_size=8"),
        ({"warmup": BatchSizeWarmup(2, "5%")}, "share of a run without max_tokens"),
        ({"warmup": BatchSizeWarmup(2, "soon")}, "'soon' is not a duration"),
    ],
)
def test_sizes_that_cannot_be_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchSizePlan(**({"global_batch_size": 8, "sequence_length": 10} | arguments))  # type: ignore[arg-type]
