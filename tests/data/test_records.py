import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from lmstack.data.records import read_records

ROWS = [{"a": 1}, {"a": "zwei – 二\u2028"}, {"a": None}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def values(path: Path | str | list[str]) -> list[dict[str, object]]:
    return [record.values for record in read_records(path if isinstance(path, list) else str(path))]


def test_a_record_says_its_file_and_line_blank_lines_counted(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\ufeff" + LINES.replace("\n", "\r\n\n", 1), encoding="utf-8")
    found = read_records(str(file))
    assert [record.values for record in found] == ROWS
    assert [record.where for record in found] == [f"{file}, line {n}" for n in (1, 3, 4)]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_of_objects_is_read_as_one_whatever_the_file_is_called(
    tmp_path: Path, name: str, indent: int | None
) -> None:
    file = tmp_path / name
    file.write_text("\n " + json.dumps(ROWS, indent=indent), encoding="utf-8")
    assert values(file) == ROWS
    assert read_records(str(file))[2].where == f"{file}, item 3"


def test_a_compressed_file_is_read_and_a_torn_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl.gz"
    whole = gzip.compress(LINES.encode())
    file.write_bytes(whole)
    assert values(file) == ROWS
    file.write_bytes(whole[:-12])
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz: cannot be read"):
        read_records(str(file))


def test_parquet_is_read_with_its_nested_values(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"messages": [{"role": "user", "content": "a"}], "n": 1}, {"messages": [], "n": None}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert values(tmp_path / "rows.parquet") == rows
    assert read_records(str(tmp_path))[1].where == f"{tmp_path / 'rows.parquet'}, row 2"
    (tmp_path / "rows.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"rows\.parquet: cannot be read as Parquet"):
        read_records(str(tmp_path))


def test_files_come_in_the_order_of_their_names_from_folders_globs_and_lists(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "sub/c.json", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"from": name}))
    assert values(tmp_path) == [{"from": "a.jsonl"}, {"from": "b.jsonl"}, {"from": "sub/c.json"}]
    assert values(f"{tmp_path}/*.jsonl") == [{"from": "a.jsonl"}, {"from": "b.jsonl"}]
    assert values([f"{tmp_path}/sub", f"{tmp_path}/b.jsonl"]) == [{"from": "sub/c.json"}, {"from": "b.jsonl"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", LINES + '{"a": ', r"x\.jsonl, line 4: not JSON \(.*on_bad_row=drop"),
        ("x.jsonl", LINES + "3\n", r"x\.jsonl, line 4: expected an object with fields, got int"),
        ("x.json", '[{"a": 1}, "b"]', r"x\.json, item 2: expected an object with fields, got str"),
        ("x.json", '[{"a": 1}', r"x\.json: begins with \[ and is no JSON list"),
        ("x.jsonl", "\n\n", "no records"),
        ("x.csv", "a,b", r"x\.csv: not one of \.jsonl"),
    ],
)
def test_what_cannot_be_read_is_named_with_file_and_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_records(str(tmp_path / name))


def test_a_path_that_leads_nowhere_and_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere/\*\.jsonl: there is no such file"):
        read_records("nowhere/*.jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"a": "ä"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.jsonl: cannot be read as UTF-8"):
        read_records(str(tmp_path / "latin.jsonl"))


def test_rows_that_are_no_objects_can_be_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(LINES + '{"a": \n{"a\n[1]\n')
    left_out: Counter[str] = Counter()
    assert [record.values for record in read_records(str(tmp_path / "x.jsonl"), left_out)] == ROWS
    assert left_out == {"not JSON": 2, "expected an object with fields, got list": 1}
