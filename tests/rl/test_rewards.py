"""Reward functions: their weighted sum, and what is said when one fails."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from lmstack.rl.rewards import RewardError, Sample, WeightedRewards


def samples() -> list[Sample]:
    return [
        Sample(f"prompt {i}", f"answer {i}", [i], [i, i], "stop_id", {"source_line": f"prompts.jsonl:{i + 1}"})
        for i in range(4)
    ]


def lengths(batch: Sequence[Sample]) -> list[float]:
    return [float(len(sample.response_ids)) for sample in batch]


def numbers(batch: Sequence[Sample]) -> Any:
    return torch.tensor([float(sample.prompt_ids[0]) for sample in batch])


def test_the_total_is_the_weighted_sum_and_the_terms_are_not_weighted() -> None:
    rewards = WeightedRewards({"length": lengths, "number": numbers}, {"number": -1.5, "length": 10.0})
    terms = rewards(samples())
    assert {name: values.tolist() for name, values in terms.items()} == {"length": [2.0] * 4, "number": [0, 1, 2, 3]}
    assert rewards.total(terms).tolist() == [20.0, 18.5, 17.0, 15.5]


def message_of(function: Callable[[Sequence[Sample]], Any]) -> str:
    with pytest.raises(RewardError) as caught:
        WeightedRewards({"fine": lengths, "mine": function}, {"fine": 1.0, "mine": 1.0})(samples())
    return str(caught.value)


def test_a_function_that_raises_is_named_with_the_sample_and_its_line() -> None:
    def broken(batch: Sequence[Sample]) -> list[float]:
        return [1 / (2 - sample.prompt_ids[0]) for sample in batch]

    message = message_of(broken)
    assert message.startswith("The reward function 'mine' raised ZeroDivisionError: division by zero")
    assert "on the response 'answer 2' to the prompt 'prompt 2' (prompts.jsonl:3)" in message
    assert "resume with ckpt_path=last" in message


def test_a_function_that_raises_only_on_a_whole_batch_is_named_all_the_same() -> None:
    def broken(batch: Sequence[Sample]) -> list[float]:
        if len(batch) > 1:
            raise KeyError("answers")
        return [0.0]

    message = message_of(broken)
    assert message.startswith("The reward function 'mine' raised KeyError: 'answers'.")
    assert "prompt 0" not in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_no_number_is_named_with_its_sample(value: float) -> None:
    message = message_of(lambda batch: [value if sample.prompt_ids == [3] else 0.0 for sample in batch])
    assert message.startswith(f"The reward function 'mine' gave {value} on the response 'answer 3'")
    assert "(prompts.jsonl:4)" in message


def test_a_wrong_count_is_refused() -> None:
    assert "'mine' gave 3 values for 4 samples" in message_of(lambda batch: [0.0] * 3)
    assert "'mine' gave 5 values for 4 samples" in message_of(lambda batch: [0.0] * 5)


def test_what_is_not_a_list_of_numbers_is_refused() -> None:
    assert "'mine' raised TypeError" in message_of(lambda batch: None)
    assert "'mine' raised ValueError" in message_of(lambda batch: ["good"] * len(batch))


def test_an_interruption_is_not_swallowed() -> None:
    def interrupted(batch: Sequence[Sample]) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        WeightedRewards({"mine": interrupted}, {"mine": 1.0})(samples())


def test_there_must_be_a_function_and_its_name_must_be_free() -> None:
    with pytest.raises(ValueError, match=r"model\.rewards is empty"):
        WeightedRewards({}, {})
    with pytest.raises(ValueError, match=r"model\.rewards\.total: 'reward/total' is logged already"):
        WeightedRewards({"total": lengths}, {"total": 1.0})
