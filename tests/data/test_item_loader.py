import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmstack.data.item_loader import EpochPlan, HeldOut, ItemSteps, Share
from lmstack.data.rank import Rank
from lmstack.data.step_loader import StepLoader

TOKENS = np.array([3, 1, 4, 1, 5, 9, 2])


def plan(num_epochs: float | None = 3.0, batch_size: int = 4, seed: int = 0) -> EpochPlan:
    return EpochPlan(TOKENS, batch_size, num_epochs, seed)


def loader(rank: Rank | None = None, **arguments: float | None) -> StepLoader:
    return StepLoader(ItemSteps(plan(**arguments), rank or Rank(), lambda share: share), {"data": "abc"})  # type: ignore[arg-type]


def items(steps: list[Share]) -> list[int]:
    return [item for step in steps for item in step.items]


def test_each_epoch_has_each_item_exactly_once_in_an_order_of_its_own() -> None:
    order = items(list(loader()))
    epochs = [order[i : i + 7] for i in range(0, 21, 7)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(7))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert order == items(list(loader()))
    assert order != items(list(loader(seed=1)))


def test_one_then_two_then_one_rank_take_every_item_exactly_once_in_the_same_order() -> None:
    whole = items(list(loader()))
    for first, second in itertools.product(range(6), range(4)):
        single = loader()
        seen = items(list(itertools.islice(single, first)))
        pair = [loader(Rank(index, 2)) for index in range(2)]
        for one in pair:
            one.load_state_dict(single.state_dict())
        steps = [list(itertools.islice(one, second)) for one in pair]
        seen += [item for both in zip(*steps, strict=True) for share in both for item in share.items]
        assert pair[0].state_dict() == pair[1].state_dict()
        last = loader()
        last.load_state_dict(pair[1].state_dict())
        seen += items(list(last))
        assert seen == whole
        assert Counter(seen) == dict.fromkeys(range(7), 3)


def test_resume_at_any_step_goes_on_exactly() -> None:
    whole = list(loader())
    for done in range(len(whole) + 1):
        before, after = loader(), loader()
        assert list(itertools.islice(before, done)) == whole[:done]
        after.load_state_dict(before.state_dict())
        assert list(after) == whole[done:]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_a_step_evenly_and_know_the_largest_share_and_their_place(world_size: int) -> None:
    for steps in zip(*(loader(Rank(index, world_size)) for index in range(world_size)), strict=True):
        sizes = [len(step.items) for step in steps]
        assert max(sizes) - min(sizes) <= 1
        assert {step.largest for step in steps} == {max(sizes)}
        assert [step.first for step in steps] == list(np.cumsum([0, *sizes])[:-1] + steps[0].first)


def test_a_run_ends_after_its_epochs_whole_or_not() -> None:
    assert [plan(epochs).num_steps for epochs in (1.0, 3.0, 0.5, 0.01)] == [2, 6, 1, 1]
    assert len(items(list(loader()))) == 21
    assert len(items(list(loader(num_epochs=0.5)))) == 4
    assert plan(None).num_steps is None
    assert plan(None).batch_size_at(10**6) == 4
    assert [plan().batch_size_at(n) for n in (0, 16, 20, 21, 30)] == [4, 4, 1, 0, 0]


@given(st.integers(0, 40), st.integers(1, 9), st.sampled_from([1.0, 2.5, None]))
def test_tokens_and_samples_at_a_step_are_what_was_handed_out(step: int, batch_size: int, epochs: float | None) -> None:
    chosen = plan(epochs, batch_size)
    handed = items(list(itertools.islice(loader(num_epochs=epochs, batch_size=batch_size), step)))
    assert chosen.samples_at_step(step) == len(handed)
    assert chosen.tokens_at_step(step) == sum(TOKENS[handed])


@given(st.integers(0, 500), st.integers(1, 30))
def test_steps_for_tokens_is_the_first_step_with_so_many(tokens: int, batch_size: int) -> None:
    endless = plan(None, batch_size)
    steps = plan(1.0, batch_size).steps_for_tokens(tokens)
    assert endless.tokens_at_step(steps) >= tokens
    assert steps == 0 or endless.tokens_at_step(steps - 1) < tokens


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_held_out_items_come_once_in_order_in_as_many_batches_on_every_rank(world_size: int) -> None:
    ranks = [HeldOut(11, 2, Rank(index, world_size), list) for index in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1
    batches = [rank[index] for index in range(len(ranks[0])) for rank in ranks]
    assert [item for batch in batches for item in batch] == list(range(11))
    assert all(len(batch) <= 2 for batch in batches)


@pytest.mark.parametrize(("arguments", "message"), [((0, 1.0), "global_batch_size=0"), ((1, 0.0), "num_epochs=0")])
def test_a_run_without_steps_is_refused(arguments: tuple[int, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpochPlan(TOKENS, *arguments, seed=0)
