"""The files of `dirty_corpus.py`: documents in many formats, and inputs that are broken. Same documents, same bytes."""

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
from dirty_corpus_classes import Planted

_DATE = "2024-01-01T00:00:00Z"
_SHARES = (("jsonl", 0.45), ("jsonl.gz", 0.2), ("parquet", 0.2), ("csv", 0.1), ("txt", 0.05))
_DOCUMENTS_A_FILE = 2500
_LONGEST_DOCUMENT = 1 << 24
"""`max_document_bytes` of a source, unless a config says otherwise."""


def write_documents(folder: Path, documents: Sequence[Planted]) -> dict[str, str]:
    """Write documents into files, those of class `html` as pages and into WARC files.

    Args:
        folder: New; each format has a folder in it.
        documents: In an order that mixes the classes.

    Returns:
        The file of each document by its name.
    """
    pages = [document for document in documents if document.kind == "html"]
    texts = [document for document in documents if document.kind != "html"]
    where: dict[str, str] = {}
    first = 0
    for suffix, share in _SHARES:
        stop = len(texts) if suffix == _SHARES[-1][0] else first + round(share * len(texts))
        size = 1 if suffix == "txt" else _DOCUMENTS_A_FILE
        for number, start in enumerate(range(first, stop, size)):
            where |= _write(folder, suffix, number, texts[start : min(start + size, stop)])
        first = stop
    half = len(pages) // 2
    for number, page in enumerate(pages[:half]):
        where |= _write(folder, "html", number, [page])
    for number, start in enumerate(range(half, len(pages), _DOCUMENTS_A_FILE)):
        where |= _write(folder, "warc.gz", number, pages[start : start + _DOCUMENTS_A_FILE])
    return where


def _write(folder: Path, suffix: str, number: int, documents: Sequence[Planted]) -> dict[str, str]:
    stem = documents[0].name if suffix in ("txt", "html") else f"part-{number:03d}"
    file = folder / suffix.replace(".", "_") / f"{stem}.{suffix}"
    file.parent.mkdir(parents=True, exist_ok=True)
    if suffix in ("txt", "html"):
        file.write_bytes(documents[0].text.encode())
    elif suffix == "jsonl":
        file.write_bytes(_lines(documents))
    elif suffix == "jsonl.gz":
        file.write_bytes(gzip.compress(_lines(documents), 1, mtime=0))
    elif suffix == "parquet":
        columns = {"name": [document.name for document in documents], "text": [d.text for d in documents]}
        parquet.write_table(pa.table(columns), file)
    elif suffix == "csv":
        with open(file, "w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["name", "text"])
            writer.writerows([document.name, document.text] for document in documents)
    else:
        file.write_bytes(b"".join(gzip.compress(_warc_record(document), 1, mtime=0) for document in documents))
    return {document.name: file.relative_to(folder).as_posix() for document in documents}


def _lines(documents: Sequence[Planted]) -> bytes:
    records = ({"name": document.name, "text": document.text} for document in documents)
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def _warc_record(document: Planted) -> bytes:
    body = document.text.encode()
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: https://example.org/{document.name}\r\n"
        f"WARC-Date: {_DATE}\r\nWARC-Record-ID: <urn:uuid:{document.name}>\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    return head.encode() + http + b"\r\n\r\n"


def write_broken(folder: Path, texts: Sequence[str], long_line_bytes: int) -> dict[str, dict[str, object]]:
    """Write inputs as they come from real crawls: damaged, mislabelled, empty, too long.

    Args:
        folder: New.
        texts: Clean texts to put into them, 12 or more, each used once.
        long_line_bytes: Size of the document that is one line.

    Returns:
        What is wrong with each file, and how many documents can be read from it all the same.
    """
    folder.mkdir(parents=True)
    left = iter(texts)

    def lines(count: int) -> bytes:
        return "".join(json.dumps({"text": next(left)}, ensure_ascii=False) + "\n" for _ in range(count)).encode()

    members = [gzip.compress(lines(2), mtime=0) for _ in range(3)]
    damaged = bytearray(members[1])
    damaged[len(damaged) // 2 : len(damaged) // 2 + 8] = b"\0" * 8
    (folder / "corrupt_member.jsonl.gz").write_bytes(members[0] + bytes(damaged) + members[2])
    (folder / "undecodable.txt").write_bytes(next(left).encode() + b" caf\xe9 \xff\xfe\x81 " + "Größe ".encode() * 20)
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "array.jsonl").write_text(json.dumps([{"text": next(left)}, {"text": next(left)}]), encoding="utf-8")
    (folder / "bad_line.jsonl").write_bytes(lines(1) + b'{"text": "cut off\n' + lines(1))
    (folder / "no_parquet.parquet").write_bytes(b"PAR1 but nothing else")
    with io.BytesIO() as buffer:
        buffer.write(b'{"text": "')
        buffer.write(b"word " * (long_line_bytes // 5))
        buffer.write(b'"}\n')
        (folder / "long_line.jsonl").write_bytes(buffer.getvalue() + lines(1))
    readable = 1 if long_line_bytes > _LONGEST_DOCUMENT else 2
    return {
        "corrupt_member.jsonl.gz": {"problem": "the second of three gzip members is damaged", "readable": 4},
        "undecodable.txt": {"problem": "bytes that are no UTF-8", "readable": 1},
        "empty.jsonl": {"problem": "empty", "readable": 0},
        "empty.txt": {"problem": "empty", "readable": 0},
        "array.jsonl": {"problem": "a JSON array in a file of lines", "readable": 2},
        "bad_line.jsonl": {"problem": "the second of three lines is no JSON", "readable": 2},
        "no_parquet.parquet": {"problem": "no Parquet file", "readable": 0},
        "long_line.jsonl": {"problem": f"a document of {long_line_bytes:,} bytes on one line", "readable": readable},
    }
