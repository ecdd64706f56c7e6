"""The example rows of the documentation are read as it says."""

import json
import re
from pathlib import Path
from typing import Any

from lmstack.data.conversations import detect_schema, read_conversation, read_prompt
from lmstack.data.preferences import read_answers
from tiny_chats import record

PAGE = Path(__file__).parents[2] / "docs" / "how_to" / "post_training_data.md"


def rows(number: int) -> list[dict[str, Any]]:
    block = re.findall(r"^```json\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[number]
    return [json.loads(line) for line in block.splitlines()]


def test_rows_of_conversations() -> None:
    schemas = [detect_schema(record(**row)) for row in rows(0)]
    assert schemas == ["messages", "sharegpt", "alpaca", "prompt_completion"]
    read = [read_conversation(record(**row), schema).messages for row, schema in zip(rows(0), schemas, strict=True)]
    assert read[0] == read[1]
    assert [message["content"] for message in read[2]] == ["Hi", "Hello.", "Add the numbers.\n\n1 2", "3"]


def test_rows_of_comparisons() -> None:
    read = [read_answers(record(**row)) for row in rows(1)]
    best = [answers.texts[answers.pairs()[0].better] for answers in read if not answers.labels]
    assert best == ["Hello.", "Hello.", "best", "b", "b", "Hello.", "Hello."]
    assert read[-1].labels == [1]
    assert {answers.prompt_text for answers in read} == {"user: Hi"}


def test_rows_of_prompts() -> None:
    assert [read_prompt(record(**row))[0]["content"] for row in rows(2)] == ["1 + 1?"]
