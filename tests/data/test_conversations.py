from typing import Any

import pytest

from lmstack.data.conversations import detect_schema, prompt_text, read_conversation, read_prompt
from lmstack.data.records import Record
from tiny_chats import record

S, U, A = ({"role": role} for role in ("system", "user", "assistant"))
EXPECTED = [S | {"content": "Be kind."}, U | {"content": "Hi?"}, A | {"content": "Hello."}]
ROWS: dict[str, dict[str, Any]] = {
    "messages": {"messages": EXPECTED},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}],
        "system": "Be kind.",
    },
    "alpaca": {"instruction": "Hi?", "input": "", "output": "Hello.", "system": "Be kind."},
    "prompt_completion": {"prompt": "Hi?", "completion": "Hello.", "system": "Be kind."},
}


def read(row: Record) -> list[dict[str, Any]]:
    return read_conversation(row, detect_schema(row)).messages


@pytest.mark.parametrize("schema", ROWS)
def test_each_layout_is_recognized_and_says_the_same(schema: str) -> None:
    row = record(**ROWS[schema])
    assert detect_schema(row) == schema
    assert read(row) == EXPECTED
    assert read_conversation(row, detect_schema(row)).row == row.values


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, [("user", "Add.\n\n1 2"), ("assistant", "3")]),
        (
            {"instruction": "c", "output": "d", "history": [["a", "b"]]},
            [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
        ),
        ({"question": "1+1?", "answer": "2"}, [("user", "1+1?"), ("assistant", "2")]),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, [("user", "a"), ("assistant", "b")]),
        (
            {"prompt": [U | {"content": "a"}], "completion": [A | {"content": "b"}]},
            [("user", "a"), ("assistant", "b")],
        ),
        ({"conversations": [U | {"content": "a"}, A | {"content": "b"}]}, [("user", "a"), ("assistant", "b")]),
        (
            {
                "conversations": [
                    {"from": "human", "value": "2+2?"},
                    {"from": "function_call", "value": '{"add": [2, 2]}'},
                    {"from": "observation", "value": ""},
                    {"from": "gpt", "value": "4"},
                ]
            },
            [("user", "2+2?"), ("assistant", '{"add": [2, 2]}'), ("tool", ""), ("assistant", "4")],
        ),
    ],
)
def test_variants_that_people_s_files_have(row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert [(message["role"], message["content"]) for message in read(record(**row))] == expected


def test_what_a_message_says_about_its_training_is_kept_and_other_fields_are_not() -> None:
    marked = [U | {"content": "a", "weight": 1}, A | {"content": "b", "train": False, "id": 3}]
    assert read(record(messages=marked)) == [U | {"content": "a", "weight": 1}, A | {"content": "b", "train": False}]


@pytest.mark.parametrize(
    ("schema", "row", "message"),
    [
        ("alpaca", {"instruction": "a"}, "no field 'output'"),
        ("alpaca", {"instruction": "a", "output": 3}, "'output' is int, not text"),
        ("alpaca", {"instruction": "a", "output": " \n"}, r"message 2 \(assistant\) is empty"),
        ("alpaca", {"instruction": "a", "output": "b", "history": [["x"]]}, "'history' must be a list of"),
        ("prompt_completion", {"prompt": "a"}, "no field 'completion'"),
        ("messages", {"text": "a"}, r"no field 'messages'. It has \['text'\]"),
        ("messages", {"messages": "a"}, "expected a list of messages, got str"),
        ("messages", {"messages": []}, "there are no messages"),
        ("messages", {"messages": [{"role": "user"}]}, "message 1 has no 'content'"),
        ("messages", {"messages": [{"role": "user", "content": "a"}]}, "no message of the assistant"),
        ("messages", {"messages": [EXPECTED[1], {"role": "narrator", "content": "a"}]}, "message 2 has the role 'narr"),
        ("messages", {"messages": [EXPECTED[1], {"role": "assistant", "content": None}]}, "message 2 is NoneType"),
        ("messages", {"messages": [{"role": "user", "content": ""}, EXPECTED[2]]}, r"message 1 \(user\) is empty"),
        ("sharegpt", {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt"}]}, "message 2 has no 'value'"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(schema: Any, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^file\.jsonl, line 17: .*" + message):
        read_conversation(record(**row), schema)


def test_a_layout_that_is_not_known_is_refused_with_its_fields() -> None:
    with pytest.raises(ValueError, match=r"line 17: the fields \['instances', 'name'\] are of no known layout"):
        detect_schema(record(name="a", instances=[]))


def test_a_prompt_may_be_text_or_messages_and_ends_where_its_row_says() -> None:
    assert read_prompt(record(prompt="Hi?", answer="42")) == [EXPECTED[1]]
    assert read_prompt(record(prompt=EXPECTED[:2])) == EXPECTED[:2]
    assert read_prompt(record(messages=EXPECTED)) == EXPECTED
    assert read_prompt(record(**ROWS["alpaca"])) == EXPECTED[:2]
    assert read_prompt(record(prompt=None, question="Hi?")) == [EXPECTED[1]]
    for row, message in (
        ({"text": "a"}, "no prompt among"),
        ({"prompt": " "}, "is empty"),
        ({"prompt": []}, "no mess"),
    ):
        with pytest.raises(ValueError, match=f"line 17: .*{message}"):
            read_prompt(record(**row))


def test_conversations_that_begin_alike_have_the_same_prompt() -> None:
    longer = [*EXPECTED, U | {"content": "And?"}, A | {"content": "Bye."}]
    assert prompt_text(longer) == prompt_text(EXPECTED) == prompt_text(EXPECTED[:2]) == "system: Be kind.\nuser: Hi?"
    assert prompt_text([EXPECTED[0], U | {"content": " Hi?\n"}]) == prompt_text(EXPECTED)
    assert prompt_text(EXPECTED[1:]) != prompt_text(EXPECTED)
