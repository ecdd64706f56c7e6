"""`lmstack data best_of_n`: the best of several responses, as rows that fine-tuning reads; killed and started again."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lmstack.cli.best_of_n import best_of_n
from lmstack.data.conversations import detect_schema, read_conversation
from lmstack.data.records import read_records
from lmstack.models import Transformer, save_weights
from lmstack.rl.rewards import Sample
from lmstack.rl.verifiable import FunctionReward
from lmstack.tokenization import byte_tokenizer
from tiny_chats import rows_file
from tiny_run import tiny_config

CALLS: list[int] = []


def first_byte(samples: Sequence[Sample]) -> list[float]:
    CALLS.append(len(samples))
    if len(CALLS) == FAIL_AT[0]:
        raise KeyboardInterrupt
    return [float(sample.response_ids[0]) for sample in samples]


FAIL_AT = [0]


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, Any]:
    CALLS.clear()
    FAIL_AT[0] = 0
    model = tmp_path / "model"
    save_weights(model, Transformer(tiny_config(vocab_size=257, max_seq_len=32)))
    byte_tokenizer().save(model / "tokenizer")
    return {
        "checkpoint": str(model),
        "prompts": rows_file(tmp_path / "prompts.jsonl", [{"prompt": f"question {i}"} for i in range(7)]),
        "output": str(tmp_path / "out" / "best.jsonl"),
        "rewards": {"first": FunctionReward(f"{__file__}:first_byte")},
        "chat_template": "plain",
        "max_new_tokens": 4,
        "finished_only": False,
        "prompts_per_batch": 2,
    }


def rows(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(arguments["output"]).read_text().splitlines()]


def test_the_best_of_more_samples_are_better_and_are_demonstrations(arguments: dict[str, Any]) -> None:
    best_of_n(**arguments, num_samples=1)
    one = [row["reward"] for row in rows(arguments)]
    best_of_n(**arguments, num_samples=8, overwrite=True)
    eight = rows(arguments)
    assert len(one) == len(eight) == 7
    assert all(row["reward"] >= reward for row, reward in zip(eight, one, strict=True))  # the first draw is among them
    assert sum(row["reward"] for row in eight) > sum(one)
    for number, record in enumerate(read_records(arguments["output"])):
        conversation = read_conversation(record, detect_schema(record))
        assert [m["role"] for m in conversation.messages] == ["user", "assistant"]
        assert conversation.messages[0]["content"] == f"question {number}"


def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not_been(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import lmstack.rl.verifiable as module

    monkeypatch.setattr(module, "_module_in_file", lambda _: __import__("sys").modules[__name__])
    best_of_n(**arguments)
    whole = Path(arguments["output"]).read_bytes()
    num_batches = len(CALLS)
    CALLS.clear()
    FAIL_AT[0] = 3
    with pytest.raises(KeyboardInterrupt):
        best_of_n(**arguments, overwrite=True)
    partial = Path(f"{arguments['output']}.partial")
    partial.write_text(partial.read_text() + '{"totals": [1.0')  # a kill in the middle of a line
    FAIL_AT[0] = 0
    CALLS.clear()
    best_of_n(**arguments, overwrite=True)
    assert len(CALLS) == num_batches - 2
    assert Path(arguments["output"]).read_bytes() == whole
    assert not partial.exists()


def test_an_earlier_result_is_not_overwritten_unless_asked(arguments: dict[str, Any]) -> None:
    best_of_n(**arguments)
    with pytest.raises(ValueError, match="the file exists already"):
        best_of_n(**arguments)
