"""Rewards that can be checked."""

from pathlib import Path
from typing import Any

import pytest

from lmstack.rl.rewards import Sample
from lmstack.rl.verifiable import ExactAnswer, FunctionReward, LengthReward, NumericAnswer, RegexReward


def sample(response: str, **row: Any) -> Sample:
    return Sample("a prompt with 42", response, [1], list(range(len(response.split()))), "stop_id", row)


@pytest.mark.parametrize(
    ("response", "score"),
    [("New York", 1), ("  new\n york ", 1), ("NEW YORK", 1), ("NewYork", 0), ("New York.", 0), ("in New York", 0)],
)
def test_exact_answer(response: str, score: int) -> None:
    assert ExactAnswer()([sample(response, answer="New York")]) == [score]


def test_an_answer_can_be_under_another_name_and_of_another_type() -> None:
    assert ExactAnswer(field="label")([sample("7", label=7), sample("8", label=7)]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("2.50", 1),
        ("it is 2.5", 1),
        ("2.5 dollars, not 3", 0),
        ("first 3, then #### 2.5", 1),
        ("2.5 #### 3", 0),
        ("$2.5", 1),
        ("2.5.", 1),
        ("-2.5", 0),
        ("two and a half", 0),
        ("", 0),
        ("####", 0),
    ],
)
def test_numeric_answer(response: str, score: int) -> None:
    assert NumericAnswer()([sample(response, answer="5 / 2 = 2.5 #### 2.5")]) == [score]


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [
        ("1,234", "1234", 1),
        ("so 1,234,567.", 1234567, 1),
        ("-5", "-5", 1),
        ("+5", 5.0, 1),
        (".5", "0.5", 1),
        ("0.1000000000000000055", "0.1", 0),
        ("007", "7", 1),
        ("12,13", 13, 1),
        ("12,13", 1213, 0),
        ("from 3-4", 4, 1),
        ("x = -4", -4, 1),
        ("12,345.5 km", 12345.5, 1),
    ],
)
def test_numbers_are_compared_as_decimals(response: str, answer: Any, score: int) -> None:
    assert NumericAnswer()([sample(response, answer=answer)]) == [score]


def test_a_record_without_the_answer_is_named() -> None:
    for reward in (ExactAnswer(), NumericAnswer()):
        with pytest.raises(ValueError, match=r"the prompt's record has no 'answer', only \['question'\]"):
            reward([sample("x", question="?")])
    with pytest.raises(ValueError, match="the record's 'answer' holds no number: 'many'"):
        NumericAnswer()([sample("3", answer="many")])


def test_regular_expressions() -> None:
    think = r"<think>.*</think><answer>.*</answer>"
    good = "<think>a\nb</think><answer>c</answer>"
    batch = [sample(good), sample(f"well: {good}"), sample("<answer>c</answer>")]
    assert RegexReward(think, match="full")(batch) == [1.0, 0.0, 0.0]
    assert RegexReward(think)(batch) == [1.0, 1.0, 0.0]
    with pytest.raises(ValueError, match=r"rewards\.pattern='\(' is not a regular expression"):
        RegexReward("(")


def test_length() -> None:
    batch = [sample("a b c d"), sample("a b c"), sample("a b c d e f"), sample("a"), sample("a " * 50)]
    assert LengthReward(target=4, tolerance=2)(batch) == [0.0, -0.5, -1.0, -1.0, -1.0]
    with pytest.raises(ValueError, match=r"rewards\.tolerance=0"):
        LengthReward(target=4, tolerance=0)


def test_a_function_is_imported_by_its_path() -> None:
    assert FunctionReward("math.fsum").load()([1, 2]) == 3.0  # type: ignore[comparison-overlap, list-item]


@pytest.mark.parametrize("path", ["nowhere.at_all", "math.no_such", "fsum", ""])
def test_a_path_that_leads_nowhere_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"cannot import it .* Give package\.module\.function"):
        FunctionReward(path).load()


def test_a_function_is_found_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def score(samples):\n    return [7.0 for _ in samples]\n")
    assert FunctionReward(f"{file}:score").load()([sample("x")]) == [7.0]
    for path in (f"{file}:other", f"{tmp_path}/none.py:score"):
        with pytest.raises(ValueError, match="cannot import it"):
            FunctionReward(path).load()


def test_a_path_to_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rewards\.path='math\.pi' is a float, not a function"):
        FunctionReward("math.pi").load()
