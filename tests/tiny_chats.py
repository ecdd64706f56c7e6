"""Small chat data for tests: files of rows, and a byte tokenizer on disk."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lmstack.data.records import Record
from lmstack.tokenization import ChatTemplate, Tokenizer, byte_tokenizer


def rows_file(path: Path, rows: Iterable[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def record(**values: Any) -> Record:
    return Record(values, "file.jsonl, line 17")


def saved_tokenizer(folder: Path) -> str:
    byte_tokenizer().save(folder / "tokenizer")
    return str(folder / "tokenizer")


def chatml_tokenizer() -> Tokenizer:
    return byte_tokenizer().with_special_tokens(ChatTemplate("chatml").special_tokens())


def chats(count: int) -> list[dict[str, Any]]:
    """Conversations of different lengths with different prompts."""
    return [
        {"prompt": f"question {i} " + "why " * (i % 5), "completion": f"answer {i}" + "!" * (i % 7)}
        for i in range(count)
    ]


def comparisons(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"question {i}", "answers": [f"good {i}", f"fair {i}" + "." * (i % 4), f"bad {i}"][: 2 + i % 2]}
        for i in range(count)
    ]
