"""Rejection sampling: which responses become demonstrations."""

import pytest

from lmstack.rl.best_of_n import BestOfN
from lmstack.rl.rewards import Sample


def said(*texts: str, cut: tuple[int, ...] = ()) -> list[Sample]:
    return [
        Sample("Q?", text, [1], [2], "length" if i in cut else "stop_id")  # type: ignore[arg-type]
        for i, text in enumerate(texts)
    ]


def test_the_best_are_kept_best_first_and_the_first_of_equals() -> None:
    samples = said("a", "b", "c", "d")
    assert BestOfN(4, keep=1).pick(samples, [0.0, 3.0, 3.0, 1.0]) == [1]
    assert BestOfN(4, keep=3).pick(samples, [0.0, 3.0, 3.0, 1.0]) == [1, 2, 3]


def test_empty_repeated_cut_and_poor_responses_are_left_out() -> None:
    samples = said("a", " ", "a", "long", "c", cut=(3,))
    rewards = [1.0, 9.0, 2.0, 8.0, -1.0]
    assert BestOfN(5, keep=5).pick(samples, rewards) == [2, 4]
    assert BestOfN(5, keep=5, finished_only=False).pick(samples, rewards) == [3, 2, 4]
    assert BestOfN(5, keep=5, min_reward=0.0).pick(samples, rewards) == [2]
    assert BestOfN(5, min_reward=5.0).pick(samples, rewards) == []


@pytest.mark.parametrize(("arguments", "message"), [((0,), "num_samples=0"), ((4, 5), "keep=5: must be from 1 to")])
def test_counts_out_of_range_are_refused(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BestOfN(*arguments)
