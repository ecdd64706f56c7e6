import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmstack.prep.readers import Document, SourceConfig, list_pieces, read_piece, read_source


def texts(source: SourceConfig, max_bytes: int = 1 << 24) -> list[str]:
    return [document.text for document in read_source("s", source, max_bytes)]


def jsonl(file: Path, records: list[object]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def test_a_text_file_is_one_document_unless_a_separator_is_given(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("één\r\n\n<|endoftext|>\ntwo<|endoftext|>".encode())
    assert texts(SourceConfig(str(file))) == ["één\r\n\n<|endoftext|>\ntwo<|endoftext|>"]
    assert texts(SourceConfig(str(file), separator="<|endoftext|>")) == ["één\r\n\n", "\ntwo"]


@given(
    content=st.text("ab\né", max_size=60),
    separator=st.sampled_from(["\n", "ab", "é\n", "aa", "\n\n", "aba"]),
    max_bytes=st.integers(1, 40),
)
@settings(max_examples=300, deadline=None)
def test_cutting_a_file_into_pieces_anywhere_keeps_every_document_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, content: str, separator: str, max_bytes: int
) -> None:
    file = tmp_path_factory.mktemp("cut") / "a.txt"
    file.write_bytes(content.encode())
    source = SourceConfig(str(file), separator=separator)
    assert texts(source, max_bytes) == [part for part in content.split(separator) if part]


def test_pieces_of_a_long_file_are_bounded(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"text": f"document {i}"} for i in range(500)])
    pieces = list_pieces("s", SourceConfig(str(file)), 1000)
    assert len(pieces) > 10
    assert max(piece.size for piece in pieces) <= 1000
    assert sum(piece.size for piece in pieces) == file.stat().st_size


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
def test_records_are_read_from_every_format_with_the_field_named(tmp_path: Path, kind: str) -> None:
    records = [{"body": f"t{i}\nné", "site": f"s{i % 2}"} for i in range(7)]
    file = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.Table.from_pylist(records), file, row_group_size=3)
    elif kind == "jsonl.gz":
        file.write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))
    else:
        jsonl(file, records)
    source = SourceConfig(str(file), text_field="body", key_field="site")
    assert list(read_source("s", source)) == [Document(r["body"], f"site={r['site']}") for r in records]


def test_folders_and_globs_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a/1.txt", "a/c/3.md"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    (tmp_path / "a" / "picture.png").write_bytes(b"\x89")
    assert texts(SourceConfig(str(tmp_path))) == ["a/1.txt", "a/c/3.md", "b/2.txt"]
    assert texts(SourceConfig(str(tmp_path / "*" / "*.txt"))) == ["a/1.txt", "b/2.txt"]
    assert texts(SourceConfig([str(tmp_path / "b"), str(tmp_path / "a" / "1.txt")])) == ["b/2.txt", "a/1.txt"]
    assert texts(SourceConfig(str(tmp_path / "**" / "*.md"))) == ["a/c/3.md"]


def test_copies_of_a_document_have_the_same_key_wherever_they_are(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [{"text": "same"}, {"text": "other"}])
    (tmp_path / "b.txt").write_text("same")
    keys = [document.key for document in read_source("s", SourceConfig(str(tmp_path)))]
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"txt": "x"}', r"line 3 has no field 'text'; it has \['txt'\].*text_field"),
        ('{"text": 5}', r"line 3: the field 'text' holds 5, not a string"),
        ('{"text": null}', r"line 3: the field 'text' holds None"),
        ('{"text": "x"', r"line 3 is not JSON"),
        ('["x"]', r"line 3 holds a list"),
        ('{"text": "\\ud800"}', r"line 3: the text holds half a surrogate pair, U\+D800"),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_a_bad_record_is_named_by_file_and_line(tmp_path: Path, line: str, message: str, suffix: str) -> None:
    content = f'{{"text": "good"}}\n\n{line}\n'.encode()
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    with pytest.raises(ValueError, match=rf"a\.{suffix}, {message}"):
        texts(SourceConfig(str(file)), max_bytes=10)


def test_bytes_that_are_not_utf8_are_named_with_offset_and_fix_and_never_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"one--two--caf\xe9--")
    with pytest.raises(
        ValueError, match=r"a\.txt is not utf-8: byte 0xe9 at offset 13 .*`encoding`.*`errors: replace`"
    ):
        texts(SourceConfig(str(file), separator="--"), max_bytes=6)
    assert texts(SourceConfig(str(file), separator="--", encoding="latin-1"))[-1] == "café"
    assert texts(SourceConfig(str(file), separator="--", errors="replace"))[-1] == "caf\ufffd"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32-le", "shift-jis"])
def test_other_encodings_are_decoded_as_a_whole_before_they_are_split(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes("一\n二\n三".encode(encoding))
    assert texts(SourceConfig(str(tmp_path / "a.txt"), separator="\n", encoding=encoding), 2) == ["一", "二", "三"]
    (tmp_path / "a.jsonl").write_bytes('{"text": "一"}\n{"text": "二"}\n'.encode(encoding))
    assert texts(SourceConfig(str(tmp_path / "a.jsonl"), encoding=encoding), 2) == ["一", "二"]


def test_what_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 100)[:-20])
    for path, message in {
        "nowhere.txt": "does not exist",
        "*.csv": "matches no file",
        "empty": "holds no file that ends in",
        "a.json": "neither text, JSONL, JSONL.gz nor Parquet",
        "cut.jsonl.gz": r"cut\.jsonl\.gz cannot be read: .*Repair",
    }.items():
        with pytest.raises(ValueError, match=message):
            texts(SourceConfig(str(tmp_path / path)))
    with pytest.raises(ValueError, match="names no paths"):
        texts(SourceConfig([]))
    with pytest.raises(ValueError, match="is not a text of this Python"):
        texts(SourceConfig("python:nonsense"))


def test_a_parquet_file_without_the_column_names_the_columns_it_has(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"no column 'text'; it has \['body'\]"):
        texts(SourceConfig(str(tmp_path)))
    (tmp_path / "a.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(ValueError, match=r"a\.parquet is not a Parquet file"):
        texts(SourceConfig(str(tmp_path)))


def test_options_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="separator is empty"):
        SourceConfig("a", separator="")
    with pytest.raises(ValueError, match="encoding='utf9' is not known"):
        SourceConfig("a", encoding="utf9")


def test_empty_texts_are_yielded_by_a_piece_so_that_they_can_be_counted(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"text": ""}, {"text": "x"}])
    source = SourceConfig(str(file))
    (piece,) = list_pieces("s", source, 1 << 20)
    assert [document.text for document in read_piece(piece, source)] == ["", "x"]
