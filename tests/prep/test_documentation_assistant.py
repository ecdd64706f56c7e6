"""Questions and answers that are what they say, split without overlap, the same every time."""

import json
from pathlib import Path

import pytest

from lmstack.prep import documentation_assistant as assistant


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("assistant")
    assistant.write_assistant_data(path)
    return path


def rows(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def questions(folder: Path, name: str) -> list[str]:
    return [row["prompt"] if "prompt" in row else row["messages"][0]["content"] for row in rows(folder, name)]


def subject(question: str) -> str:
    return question.removeprefix("What does ").removeprefix("How do I call ").removesuffix("?").removesuffix(" do")


def test_there_is_enough_of_everything(folder: Path) -> None:
    assert len(rows(folder, assistant.DEMONSTRATIONS)) > 2000
    assert len(rows(folder, assistant.COMPARISONS)) > 1000
    assert len(rows(folder, assistant.PROMPTS)) > 400
    assert len(rows(folder, assistant.HELD_OUT_PROMPTS)) > 150


def test_no_subject_is_in_two_files(folder: Path) -> None:
    names = (assistant.DEMONSTRATIONS, assistant.COMPARISONS, assistant.PROMPTS, assistant.HELD_OUT_PROMPTS)
    subjects = [{subject(question) for question in questions(folder, name)} for name in names]
    assert sum(map(len, subjects)) == len(set.union(*subjects))


def test_it_is_the_same_every_time_and_another_with_another_seed(folder: Path, tmp_path: Path) -> None:
    assistant.write_assistant_data(tmp_path / "again")
    assistant.write_assistant_data(tmp_path / "other", seed=1)
    for name in (assistant.DEMONSTRATIONS, assistant.COMPARISONS):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        assert (folder / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_what_documentation_says_is_the_answer(folder: Path) -> None:
    answers = {
        row["messages"][0]["content"]: row["messages"][1]["content"] for row in rows(folder, assistant.DEMONSTRATIONS)
    }
    answers |= {row["prompt"]: row["answers"][0] for row in rows(folder, assistant.COMPARISONS)}
    answers |= {row["messages"][0]["content"]: row["answer"] for row in rows(folder, assistant.PROMPTS)}
    assert answers["What does textwrap.dedent do?"] == "Remove any common leading whitespace from every line in `text`."


def test_four_different_answers_are_ranked_and_longer_is_no_rule(folder: Path) -> None:
    right, longer = 0, 0
    for row in rows(folder, assistant.COMPARISONS):
        assert len(set(row["answers"])) == assistant.NUM_RANKED
        for worse in row["answers"][1:]:
            right += 1
            longer += len(row["answers"][0]) > len(worse)
    assert 0.35 < longer / right < 0.65


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Return it. And more.", ""),  # too short to be an answer
        ("Return the name of\n    the thing. And more.", "Return the name of the thing."),
        ("Return version 3.12 of the interpreter. Then.", "Return version 3.12 of the interpreter."),
        ("A sentence without an end", "A sentence without an end."),
        (">>> print(1, 2, 3, 4, 5, 6, 7, 8)", ""),
        ("f(x) -> the value of the function", ""),
        ("", ""),
    ],
)
def test_first_sentences(text: str, sentence: str) -> None:
    assert assistant.first_sentence(text) == sentence
