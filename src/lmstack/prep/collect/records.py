"""Documents from records: JSON lines, JSON, CSV, Parquet."""

import codecs
import csv
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any, cast

from lmstack.prep.collect.cutting import open_binary
from lmstack.prep.collect.encoding import UNDECODABLE, decode, detect_encoding, is_ascii_compatible
from lmstack.prep.collect.members import MemberEnd
from lmstack.prep.collect.opening import beginning, opened, separated
from lmstack.prep.collect.reading import Reading
from lmstack.prep.document import Verdict
from lmstack.prep.parts import TooLong

_LARGEST_ARRAY = 16
"""A JSON array is held in memory whole; in units of the longest document."""

_DEEPEST = 100
"""Levels of lists and objects in metadata; orjson writes 254."""


def read_jsonl(reading: Reading) -> Iterator[Verdict]:
    """A record a line; a file that turns out to be one JSON array is read as that.

    Args:
        reading: Of the piece.
    """
    limit = 2 * reading.source.max_document_bytes + (1 << 16)  # escapes, and other fields
    encoding = reading.source.encoding or "utf-8"
    is_plain = is_ascii_compatible(encoding)
    of_lines = reading if is_plain else reading.of_utf8()
    first = True
    for offset, line in separated(reading.piece, "\n", encoding, limit):
        if isinstance(line, MemberEnd):
            yield reading.damaged(line)
            continue
        if first and line.lstrip()[:1] == b"[" and (found := _read_array(reading)) is not None:
            reading.counts["files that are one JSON array"] += 1
            yield from found
            return
        first = first and not line.strip()
        if isinstance(line, TooLong):
            excerpt = line[:2000].decode("utf-8", "replace")
            yield reading.dropped("too long", f"a line of more than {limit:,} bytes", offset, excerpt)
        elif line.strip():
            reading.count_undecodable(0 if is_plain else line.count(UNDECODABLE))
            yield _parsed(of_lines, line, offset)


def read_json(reading: Reading) -> Iterator[Verdict]:
    """A file that is one JSON array of records, or one record.

    Args:
        reading: Of the piece.
    """
    found = _read_array(reading)
    if found is None:
        yield from read_jsonl(reading)
    else:
        yield from found


def read_csv(reading: Reading) -> Iterator[Verdict]:
    """A record a row, the first row names the fields; tabs in a `.tsv`.

    Args:
        reading: Of the piece.
    """
    limit = reading.source.max_document_bytes
    csv.field_size_limit(limit)
    encoding = reading.source.encoding or detect_encoding(beginning(reading.piece))
    delimiter = "\t" if ".tsv" in reading.piece.path.lower() else ","
    with closing(opened(reading.piece)) as stream:
        text = io.TextIOWrapper(cast(Any, stream), encoding=encoding, errors="replace", newline="")
        rows = csv.DictReader(_CsvLines(text, 2 * limit), delimiter=delimiter)
        number = 0
        while True:
            number += 1
            try:
                record = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield reading.dropped("bad CSV row", str(error), number)
                continue
            record.pop(cast(Any, None), None)  # more cells than headings
            reading.count_undecodable((record.get(reading.source.text_field) or "").count("\ufffd"))
            yield _from_record(reading, record, number)


def read_parquet(reading: Reading) -> Iterator[Verdict]:
    """A record a row.

    Args:
        reading: Of the piece; its start and stop count row groups.
    """
    import pyarrow.parquet as parquet

    piece = reading.piece
    with closing(open_binary(piece.path)) as stream:
        file = parquet.ParquetFile(stream)
        groups = range(file.metadata.num_row_groups)
        if piece.stop <= len(groups):  # a stretch; otherwise the whole file, measured in bytes
            groups = range(piece.start, piece.stop)
        row = sum(file.metadata.row_group(i).num_rows for i in range(groups.start))
        for batch in file.iter_batches(batch_size=512, row_groups=list(groups)):
            for record in batch.to_pylist():
                yield _from_record(reading, record, row)
                row += 1


class _CsvLines:
    """The lines of a table; one that is too long is passed over and an error, and the next call goes on after it."""

    def __init__(self, text: io.TextIOWrapper, max_characters: int):
        self._text = text
        self._max_characters = max_characters

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._max_characters)
        if len(line) < self._max_characters or line.endswith("\n"):
            if not line:
                raise StopIteration
            return line
        while line and not line.endswith("\n"):
            line = self._text.readline(self._max_characters)
        raise csv.Error(f"a line of more than {self._max_characters:,} characters")


def _read_array(reading: Reading) -> Iterable[Verdict] | None:
    """The records of a file that is one JSON value; None when it is not."""
    limit = _LARGEST_ARRAY * reading.source.max_document_bytes
    with closing(opened(reading.piece)) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        if _is_json(reading, content[:limit].lstrip().split(b"\n", 1)[0]):
            return None
        detail = f"a JSON value of more than {limit:,} bytes; write a record a line, or raise max_document_bytes"
        return [reading.dropped("too long", detail, 0, content[:2000].decode("utf-8", "replace"))]
    try:
        value = _loads(reading, content)
    except ValueError:
        return None
    records = value if isinstance(value, list) else [value]
    return (_from_record(reading, record, number) for number, record in enumerate(records))


def _parsed(reading: Reading, line: bytes, offset: int) -> Verdict:
    try:
        record = _loads(reading, line)
    except ValueError as error:
        return reading.dropped("not JSON", str(error), offset, line.decode("utf-8", "replace"))
    return _from_record(reading, record, offset)


def _loads(reading: Reading, content: bytes) -> Any:
    import orjson

    content = content.removeprefix(codecs.BOM_UTF8)
    encoding = reading.source.encoding or "utf-8"
    if encoding == "utf-8":
        try:
            return orjson.loads(content)
        except ValueError:
            pass
    text, num_bad = decode(content, encoding)
    try:
        value = json.loads(text)  # also halves of surrogate pairs, NaN, and with bytes that are no UTF-8
    except RecursionError:
        raise ValueError("nested too deep") from None
    reading.count_undecodable(num_bad)
    return value


def _is_json(reading: Reading, content: bytes) -> bool:
    try:
        _loads(reading, content)
    except ValueError:
        return False
    return True


def _from_record(reading: Reading, record: Any, position: int) -> Verdict:
    if not isinstance(record, dict):
        return reading.dropped("no record", f"a {type(record).__name__} where an object is wanted", position)
    field = reading.source.text_field
    text = record.pop(field, None)
    if not isinstance(text, str):
        found = f"holds {text!r:.60}" if text is not None else f"is not among {sorted(map(str, record))}"
        return reading.dropped("no text field", f"{field!r} {found}", position)
    try:
        metadata = _plain(record)
    except ValueError as error:
        return reading.dropped("no record", str(error), position, text)
    return reading.document(text, position, **metadata)


def _plain(value: Any, depth: int = 0) -> Any:
    """Metadata that JSON can hold."""
    if depth > _DEEPEST:
        raise ValueError(f"metadata nested more than {_DEEPEST} deep")
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    if isinstance(value, dict):
        return {_plain(str(key)): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    return str(value)
