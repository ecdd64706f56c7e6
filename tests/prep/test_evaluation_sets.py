"""Evaluation sets of every format give the same items."""

import bz2
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from lmstack.prep.evaluation_sets import EvaluationSet, Item, read_items

RECORDS = [
    {"question": "What is one?", "choices": ["a unit", "a pair"], "answer": 0},
    {"question": "多少？", "choices": ["一", ""], "answer": 1},
]


def _texts(paths: Path | str, *fields: str, has_header: bool = True) -> list[tuple[str, ...]]:
    return [item.texts for item in read_items(EvaluationSet(str(paths), list(fields), has_header))]


def _lines() -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)


def test_jsonl_in_its_variants(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(_lines() + "\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(json.dumps(RECORDS), encoding="utf-8-sig")
    (tmp_path / "c.json").write_text(json.dumps(RECORDS), encoding="utf-8")
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(_lines().encode()))
    (tmp_path / "e.jsonl.bz2").write_bytes(bz2.compress(_lines().encode()))
    pa.parquet.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "f.parquet")
    for file in sorted(tmp_path.iterdir()):
        assert _texts(file, "question", "choices") == [("What is one?", "a unit", "a pair"), ("多少？", "一")], (
            file.name
        )


def test_tables_with_and_without_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('question,answer\n"One,\ntwo?",x\nThree?,y\n')
    (tmp_path / "b.tsv").write_text("One?\tx\nThree?\ty\n")
    assert _texts(tmp_path / "a.csv", "question") == [("One,\ntwo?",), ("Three?",)]
    assert _texts(tmp_path / "b.tsv", "0", has_header=False) == [("One?",), ("Three?",)]


def test_items_are_named_by_file_and_number(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(_lines(), encoding="utf-8")
    items = list(read_items(EvaluationSet([str(tmp_path / "*.jsonl")], ["question"])))
    assert items[1] == Item("test.jsonl:1", ("多少？",))


TASK = """
task: units
dataset_path: json
dataset_kwargs:
  data_files:
    train: train.jsonl
    test: test.jsonl
test_split: test
"""


def test_a_task_names_its_files_and_fields(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(_lines(), encoding="utf-8")
    (tmp_path / "base.yaml").write_text(TASK + "doc_to_target: '{{choices[answer]}}'\nmetric: !function m.py\n")
    (tmp_path / "task.yaml").write_text("include: base.yaml\ndoc_to_text: 'Q: {{question.strip()}}\\nA:'\n")
    assert _texts(tmp_path / "task.yaml") == [("What is one?", "a unit", "a pair"), ("多少？", "一")]
    (tmp_path / "task.yaml").write_text("include: base.yaml\ndoc_to_text: question\ndoc_to_target: ''\n")
    with pytest.raises(ValueError, match="field ''"):
        _texts(tmp_path / "task.yaml")
    assert _texts(tmp_path / "task.yaml", "question") == [("What is one?",), ("多少？",)]


@pytest.mark.parametrize(
    ("name", "content", "fields", "message"),
    [
        ("a.jsonl", '{"text": "x"}', ("question",), "has no field 'question'. It has: text"),
        ("a.jsonl", '{"text": "x"}', (), "No fields are named"),
        ("a.docx", "x", ("question",), "no evaluation set that can be read"),
        ("a.yaml", "dataset_path: org/name\ndoc_to_text: question", (), "is not local"),
        ("a.yaml", TASK + "doc_to_text: !function utils.text", (), "computes doc_to_text"),
        ("a.yaml", TASK.replace("test_split: test", "test_split: dev"), ("question",), "split 'dev'"),
        ("a.yaml", TASK, (), "names no fields"),
    ],
)
def test_what_cannot_be_read_is_refused(
    name: str, content: str, fields: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        _texts(tmp_path / name, *fields)


def test_a_path_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="matches no file"):
        _texts(tmp_path / "*.jsonl", "question")
