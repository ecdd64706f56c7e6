"""Every format is read; what is broken is dropped with a reason and stops nothing."""

import csv
import gzip
import io
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import zstandard

from lmstack.prep.collect.piece import read_piece
from lmstack.prep.collect.reading import Reading
from lmstack.prep.collect.source import Source, list_pieces
from lmstack.prep.document import Document, Dropped


def read(
    path: Path | str, max_bytes: int = 1 << 20, **options: Any
) -> tuple[list[Document], list[Dropped], Counter[str]]:
    source = Source(paths=str(path), **options)
    counts: Counter[str] = Counter()
    verdicts = [
        verdict
        for piece in list_pieces("s", source, max_bytes)
        for verdict in read_piece(Reading("s", source, piece, counts))
    ]
    kept = [verdict for verdict in verdicts if isinstance(verdict, Document)]
    return kept, [verdict for verdict in verdicts if isinstance(verdict, Dropped)], counts


def texts(documents: list[Document]) -> list[str]:
    return [document.text for document in documents]


def lines(*records: object) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def test_jsonl_keeps_the_other_fields(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "one", "url": "u", "n": {"deep": [1, None]}}, {"text": "two"}))
    kept, dropped, _ = read(tmp_path / "a.jsonl", metadata={"licence": "mine"})
    assert texts(kept) == ["one", "two"]
    assert kept[0].metadata == {
        "url": "u",
        "n": {"deep": [1, None]},
        "licence": "mine",
        "path": str(tmp_path / "a.jsonl"),
    }
    assert not dropped


@pytest.mark.parametrize("max_bytes", [1, 7, 30, 1000])
def test_pieces_of_any_size_give_every_line_once_under_the_same_id(tmp_path: Path, max_bytes: int) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(*({"text": "x" * n} for n in range(1, 30))))
    whole, _, _ = read(tmp_path / "a.jsonl")
    cut, dropped, _ = read(tmp_path / "a.jsonl", max_bytes)
    assert cut == whole
    assert len({document.id for document in cut}) == 29
    assert not dropped


def test_gzip_and_zstandard_are_read(tmp_path: Path) -> None:
    content = lines({"text": "one"}, {"text": "two"})
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content))
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(content))
    assert texts(read(tmp_path / "a.jsonl.gz")[0]) == texts(read(tmp_path / "b.jsonl.zst")[0]) == ["one", "two"]


def test_a_corrupt_gzip_member_is_passed_over_and_the_next_is_read(tmp_path: Path) -> None:
    members = [gzip.compress(lines({"text": f"member {n} " + "ab" * 50})) for n in range(4)]
    broken = bytearray(members[1])
    broken[len(broken) // 2] ^= 0xFF
    (tmp_path / "a.jsonl.gz").write_bytes(members[0] + bytes(broken) + members[2] + members[3])
    kept, dropped, _ = read(tmp_path / "a.jsonl.gz")
    assert {text[:8] for text in texts(kept)} >= {"member 0", "member 2", "member 3"}
    assert [drop.reason for drop in dropped].count("corrupt gzip member") == 1


def test_a_gzip_file_that_ends_too_early_is_reported(tmp_path: Path) -> None:
    whole = gzip.compress(lines(*({"text": f"{n} {'abc' * n}"} for n in range(2000))))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    kept, dropped, _ = read(tmp_path / "a.jsonl.gz")
    assert 0 < len(kept) < 2000
    assert [drop.reason for drop in dropped] == ["corrupt gzip member"]


def test_a_json_array_in_a_jsonl_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps([{"text": "one"}, {"text": "two"}, 3], indent=2))
    kept, dropped, counts = read(tmp_path / "a.jsonl", max_bytes=10)
    assert texts(kept) == ["one", "two"]
    assert [drop.reason for drop in dropped] == ["no record"]
    assert counts["files that are one JSON array"] == 1


def test_records_that_are_wrong_are_dropped_with_reasons(tmp_path: Path) -> None:
    content = b'{"text": 3}\n{"other": "x"}\n[1]\nnot json\n{"text": "  "}\n{"text": "fine"}\n'
    (tmp_path / "a.jsonl").write_bytes(content)
    kept, dropped, _ = read(tmp_path / "a.jsonl")
    assert texts(kept) == ["fine"]
    assert [drop.reason for drop in dropped] == ["no text field", "no text field", "no record", "not JSON", "empty"]


def test_a_very_long_line_is_dropped_without_being_held(tmp_path: Path) -> None:
    with open(tmp_path / "a.jsonl", "wb") as stream:
        stream.write(lines({"text": "before"}))
        stream.write(b'{"text": "' + b"y" * (8 << 20) + b'"}\n')
        stream.write(lines({"text": "after"}))
    kept, dropped, _ = read(tmp_path / "a.jsonl", max_bytes=1 << 30, max_document_bytes=1 << 16)
    assert texts(kept) == ["before", "after"]
    assert [drop.reason for drop in dropped] == ["too long"]
    assert len(dropped[0].document.text) <= 2000


def test_half_a_surrogate_pair_is_replaced_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\\ud800b"}\n')
    kept, _, counts = read(tmp_path / "a.jsonl")
    assert texts(kept) == ["a\ufffdb"]
    assert counts["halves of surrogate pairs replaced"] == 1


def test_csv_and_tsv_are_read_with_their_headings(tmp_path: Path) -> None:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["body", "n"], ["one, two\nthree", "1"], ["", "2"]])
    (tmp_path / "a.csv").write_text(buffer.getvalue())
    (tmp_path / "b.tsv").write_text("body\tn\nfour\t3\n")
    kept, dropped, _ = read(tmp_path, text_field="body")
    assert texts(kept) == ["one, two\nthree", "four"]
    assert kept[0].metadata["n"] == "1"
    assert [drop.reason for drop in dropped] == ["empty"]


def test_parquet_is_read_by_row_groups(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"text": [f"row {n}" for n in range(10)], "n": list(range(10))})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    whole, _, _ = read(tmp_path / "a.parquet")
    cut, _, _ = read(tmp_path / "a.parquet", max_bytes=1)
    assert texts(whole) == texts(cut) == [f"row {n}" for n in range(10)]
    assert [document.metadata["n"] for document in cut] == list(range(10))


def test_text_in_other_encodings_is_detected(tmp_path: Path) -> None:
    chinese = "北京是中华人民共和国的首都，也是全国的政治中心、文化中心。" * 8
    french = "Les élèves étaient très étonnés de découvrir ça à l'école, où l'été s'achève déjà. " * 5
    (tmp_path / "gb.txt").write_bytes(chinese.encode("gb18030"))
    (tmp_path / "latin.txt").write_bytes(french.encode("cp1252"))
    (tmp_path / "bom.txt").write_bytes("\ufeffhello".encode())
    (tmp_path / "utf16.txt").write_bytes("hello".encode("utf-16"))
    kept, _, counts = read(tmp_path)
    assert set(texts(kept)) == {chinese, french, "hello"}
    assert sum(number for name, number in counts.items() if name.startswith("texts read as")) == 4


def test_bytes_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Zürich und Genève und Ägypten und Öl ".encode() * 20 + b"\xff\xfe\xff end")
    kept, _, counts = read(tmp_path / "a.txt")
    assert kept[0].text.startswith("Zürich")
    assert counts["undecodable bytes"] == 3


def test_text_is_cut_at_separators_and_code_has_a_language(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one<end>two<end>")
    (tmp_path / "b.py").write_text("x = 1\n")
    assert texts(read(tmp_path / "a.txt", separator="<end>")[0]) == ["one", "two"]
    kept, _, _ = read(tmp_path / "b.py")
    assert kept[0].metadata["programming_language"] == "python"
    assert kept[0].metadata["format"] == "code"


def warc_record(
    url: str, body: bytes, kind: str = "text/html; charset=utf-8", status: str = "200 OK", more: str = ""
) -> bytes:
    http = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
        f"WARC-Record-ID: <urn:uuid:{url}>\r\nContent-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(http)}\r\n\r\n"
    )
    return head.encode() + http + b"\r\n\r\n"


def test_pages_of_a_crawl_are_read_and_damage_is_passed_over(tmp_path: Path) -> None:
    records = [
        warc_record("http://a/1", "<p>Grüße</p>".encode()),
        warc_record("http://a/2", b"<p>two</p>"),
        warc_record("http://a/3", b"\x89PNG", kind="image/png"),
        warc_record("http://a/4", b"gone", status="404 Not Found"),
        warc_record("http://a/5", "<p>日本</p>".encode("euc-jp"), kind="text/html; charset=euc-jp"),
    ]
    members = [gzip.compress(record) for record in records]
    broken = bytearray(members[1])
    broken[-20] ^= 0xFF
    (tmp_path / "a.warc.gz").write_bytes(members[0] + bytes(broken) + b"".join(members[2:]))
    (tmp_path / "b.warc").write_bytes(records[0] + records[1])
    kept, dropped, _ = read(tmp_path / "a.warc.gz")
    assert texts(kept) == ["<p>Grüße</p>", "<p>日本</p>"]
    assert kept[0].metadata["url"] == "http://a/1"
    assert kept[0].metadata["format"] == "html"
    assert sorted(drop.reason for drop in dropped) == ["corrupt gzip member", "not a page", "not a page"]
    plain, _, _ = read(tmp_path / "b.warc")
    assert texts(plain) == ["<p>Grüße</p>", "<p>two</p>"]
    assert len({document.id for document in plain}) == 2


def test_chunks_and_compression_of_a_response_are_undone(tmp_path: Path) -> None:
    packed = gzip.compress(b"<p>packed</p>")
    chunked = {"more": "Transfer-Encoding: chunked\r\n"}
    zipped = {"more": "Content-Encoding: gzip\r\n"}
    records = [
        warc_record("http://a/1", b"7\r\n<p>in p\r\n9\r\nieces</p>\r\n0\r\n\r\n", **chunked),
        warc_record("http://a/2", packed, **zipped),
        warc_record("http://a/3", b"<p>whole in spite of its head</p>", **chunked),
        warc_record("http://a/4", b"<p>plain in spite of its head</p>", **zipped),
        warc_record("http://a/5", b"\x0b\x02\x80", more="Content-Encoding: br\r\n"),
        warc_record("http://a/6", b"<p>last</p>"),
    ]
    (tmp_path / "a.warc.gz").write_bytes(b"".join(gzip.compress(record) for record in records))
    kept, dropped, _ = read(tmp_path / "a.warc.gz")
    assert texts(kept) == [
        "<p>in pieces</p>",
        "<p>packed</p>",
        "<p>whole in spite of its head</p>",
        "<p>plain in spite of its head</p>",
        "<p>last</p>",
    ]
    assert [drop.detail for drop in dropped] == ["content encoding br at http://a/5"]


def test_the_log_of_a_crawler_is_no_page(tmp_path: Path) -> None:
    log = warc_record("metadata://gnu.org/software/wget/warc/wget.log", b"fetched", kind="text/plain")
    (tmp_path / "a.warc").write_bytes(log + warc_record("https://a/1", b"<p>one</p>"))
    kept, dropped, _ = read(tmp_path / "a.warc")
    assert texts(kept) == ["<p>one</p>"]
    assert [drop.detail for drop in dropped] == ["not from the web at metadata://gnu.org/software/wget/warc/wget.log"]


def test_files_that_cannot_be_read_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    (tmp_path / "b.jsonl").write_bytes(b"")
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    (tmp_path / "d.jsonl.zst").write_bytes(b"no zstandard")
    (tmp_path / "e.txt").write_bytes(b"")
    (tmp_path / "f.jsonl").write_bytes(lines({"text": "fine"}))
    kept, dropped, _ = read(tmp_path)
    assert texts(kept) == ["fine"]
    reasons = {Path(drop.document.metadata["path"]).name: drop.reason for drop in dropped}
    assert reasons == {
        "a.parquet": "unreadable file",
        "b.jsonl": "empty file",
        "c.jsonl": "unreadable file",
        "d.jsonl.zst": "corrupt zstd frame",
        "e.txt": "empty",
    }


def test_a_file_of_no_known_format_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("text")
    _, dropped, _ = read(tmp_path / "a.xyz")
    assert [drop.reason for drop in dropped] == ["unknown format"]
    kept, _, _ = read(tmp_path / "a.xyz", format="text")
    assert texts(kept) == ["text"]


def test_urls_are_read_through_fsspec() -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    with system.open("/bucket/a.jsonl", "wb") as stream:
        stream.write(lines({"text": "far away"}, {"text": "and more"}))
    kept, _, _ = read("memory://bucket/*.jsonl", max_bytes=8)
    assert texts(kept) == ["far away", "and more"]


@pytest.mark.parametrize("options", [{"separator": ""}, {"encoding": "utf-99"}, {"max_document_bytes": 0}])
def test_settings_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Use|Name"):
        Source(paths="x", **options)


def test_fields_may_be_called_anything(tmp_path: Path) -> None:
    fields = {"position": 1, "self": 2, "text": 3, "metadata": 4, "reason": 5, "language": ["en"]}
    (tmp_path / "a.jsonl").write_bytes(lines({"content": "fine", **fields}))
    (document,), dropped, _ = read(tmp_path / "a.jsonl", text_field="content")
    assert fields.items() <= document.metadata.items()
    assert not dropped


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"[" * 100_000, "not JSON"),
        (b'{"text": "x", "m": ' + b"[" * 200 + b"]" * 200 + b"}", "no record"),
        (b'{"text": "x", "m": ' + b"[" * 950 + b"]" * 950 + b"}", "no record"),
    ],
)
def test_what_is_nested_very_deep_is_dropped(tmp_path: Path, line: bytes, reason: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "before"}) + line + b"\n" + lines({"text": "behind"}))
    kept, dropped, _ = read(tmp_path / "a.jsonl")
    assert texts(kept) == ["before", "behind"]
    assert [drop.reason for drop in dropped] == [reason]


def test_the_name_of_a_file_may_be_any_bytes(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    Path(os.fsdecode(name)).write_text("text")
    (document,), _, _ = read(os.fsdecode(name))
    assert document.metadata["path"].endswith("caf\ufffd.txt")
    document.metadata["path"].encode()


@pytest.mark.parametrize(
    "middle",
    [
        warc_record("http://a/2", b"two")[:-30],
        warc_record("http://a/2", b"two").replace(b"Content-Length: ", b"Content-Length: 99", 1),
        warc_record("http://a/2", b"two").replace(b"Content-Length: ", b"Content-Length: x", 1),
        b"no record at all\r\n\r\n",
    ],
    ids=["cut short", "says too great a length", "says no length", "garbage"],
)
def test_a_damaged_record_of_a_crawl_costs_no_other(tmp_path: Path, middle: bytes) -> None:
    around = [warc_record(f"http://a/{n}", f"<p>{n}</p>".encode()) for n in (1, 3, 4)]
    assert middle != warc_record("http://a/2", b"two")
    (tmp_path / "a.warc").write_bytes(around[0] + middle + b"\r\n\r\n" + around[1] + around[2])
    kept, dropped, _ = read(tmp_path / "a.warc")
    assert [text for text in texts(kept) if text.startswith("<p>")] == ["<p>1</p>", "<p>3</p>", "<p>4</p>"]
    assert "corrupt WARC record" in {drop.reason for drop in dropped}


@pytest.mark.parametrize("charset", ["undefined", "base64", "idna", "nonsense"])
def test_a_page_may_declare_any_charset(tmp_path: Path, charset: str) -> None:
    record = warc_record("http://a/1", b"<p>one</p>", kind=f"text/html; charset={charset}")
    (tmp_path / "a.warc.gz").write_bytes(gzip.compress(record))
    kept, dropped, _ = read(tmp_path / "a.warc.gz")
    assert texts(kept) == ["<p>one</p>"]
    assert not dropped


def test_a_page_that_is_too_long_is_dropped_and_not_cut(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes(("<p>" + "a" * 3000 + "</p>").encode("utf-16"))
    kept, dropped, _ = read(tmp_path / "a.html", max_document_bytes=4000)
    assert not kept
    assert [drop.reason for drop in dropped] == ["too long"]


def test_a_json_array_that_is_too_long_is_one_drop(tmp_path: Path) -> None:
    records = [{"text": f"number {n} {'x' * 50}"} for n in range(100)]
    (tmp_path / "array.json").write_text(json.dumps(records, indent=1))
    (tmp_path / "array.jsonl").write_text(json.dumps(records, indent=1))
    (tmp_path / "lines.json").write_bytes(lines(*records))
    kept, dropped, _ = read(tmp_path, max_document_bytes=100)
    assert len(kept) == 100
    assert [(drop.reason, Path(drop.document.metadata["path"]).stem) for drop in dropped] == [("too long", "array")] * 2


def test_a_damaged_table_keeps_the_rows_before(tmp_path: Path) -> None:
    rows = "".join(f"row {n} {hash((n, n))}\n" for n in range(9000))
    packed = gzip.compress(("text\n" + rows).encode())
    (tmp_path / "a.csv.gz").write_bytes(packed[: len(packed) // 2])
    kept, dropped, _ = read(tmp_path / "a.csv.gz")
    assert 1000 < len(kept) < 9000
    assert [drop.reason for drop in dropped] == ["unreadable file"]
    assert "the file ends within it" in dropped[0].detail


def test_undecodable_bytes_of_records_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "G\xffnf"}\n{"text": "fine"}\n')
    (tmp_path / "b.csv").write_bytes(b"text\nZ\xc3\xbcrich\nG\xff\xffnf\n")
    kept, _, counts = read(tmp_path)
    assert texts(kept) == ["G\ufffdnf", "fine", "Z\u00fcrich", "G\ufffd\ufffdnf"]
    assert counts == {"texts with undecodable bytes": 2, "undecodable bytes": 3}


def test_the_encoding_of_records_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"text": "北京"}\n'.encode("gb18030"))
    kept, _, counts = read(tmp_path / "a.jsonl", encoding="gb18030")
    assert texts(kept) == ["北京"]
    assert not counts


def test_a_mark_of_byte_order_is_no_part_of_the_first_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines({"text": "one"}, {"text": "two"}))
    kept, dropped, _ = read(tmp_path / "a.jsonl")
    assert texts(kept) == ["one", "two"]
    assert not dropped


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("encoding", "named"),
    [("utf-16", None), ("utf-16", "utf-16"), ("gb18030", None), ("big5", "big5"), ("utf-8", None)],
)
def test_text_is_cut_at_separators_in_any_encoding(
    tmp_path: Path, compress: Any, encoding: str, named: str | None
) -> None:
    first, second = "北京是中國的首都，也是政治中心。" * 9, "這裡是第二篇文章，我們寫得不長。" * 9
    name = "a.txt" if compress is bytes else "a.txt.gz"
    (tmp_path / name).write_bytes(compress(f"{first}※{second}※".encode(encoding)))
    kept, _, counts = read(tmp_path / name, max_bytes=64, separator="※", encoding=named)
    assert texts(kept) == [first, second]
    assert "undecodable bytes" not in counts


def test_a_separator_is_not_found_within_a_character(tmp_path: Path) -> None:
    assert "功".encode("big5")[1:] == b"\\"
    (tmp_path / "a.txt").write_bytes("成功之母\\失敗".encode("big5"))
    assert texts(read(tmp_path / "a.txt", separator="\\", encoding="big5")[0]) == ["成功之母", "失敗"]


def test_lines_of_records_in_utf16_are_found(tmp_path: Path) -> None:
    records = "".join(f'{{"text": "第{number}上"}}\n' for number in range(50))  # 上 is U+4E0A: a line feed's byte
    (tmp_path / "a.jsonl").write_bytes(records.encode("utf-16"))
    kept, dropped, _ = read(tmp_path / "a.jsonl", max_bytes=100, encoding="utf-16")
    assert texts(kept) == [f"第{number}上" for number in range(50)]
    assert not dropped
