"""Documents from records: JSON lines, JSON, CSV, Parquet."""

import csv
import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any, cast

from lmstack.prep.collect.gzip_members import MemberEnd, read_members
from lmstack.prep.collect.reading import Reading
from lmstack.prep.collect.source import Piece, open_binary
from lmstack.prep.document import Verdict
from lmstack.prep.parts import ByteStream, TooLong, parts, split

_MAX_JSON_BYTES = 1 << 28
"""A JSON array is held in memory whole."""


def read_jsonl(reading: Reading) -> Iterator[Verdict]:
    """A record a line; a file that turns out to be one JSON array is read as that.

    Args:
        reading: Of the piece.
    """
    limit = 2 * reading.source.max_document_bytes + (1 << 16)  # escapes, and other fields
    first = True
    for offset, line in _lines(reading.piece, limit):
        if isinstance(line, MemberEnd):
            yield reading.dropped("corrupt gzip member", f"at byte {line.offset}: {line.error}", -1 - line.offset)
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
            yield _parsed(reading, line, offset)


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
    import io

    csv.field_size_limit(reading.source.max_document_bytes)
    with closing(opened(reading.piece)) as stream:
        sample = stream.read(1 << 16)
    encoding = reading.source.encoding
    if encoding is None:
        from lmstack.prep.collect.encoding import detect_encoding

        encoding = detect_encoding(sample)
    delimiter = "\t" if ".tsv" in reading.piece.path.lower() else ","
    with closing(opened(reading.piece)) as stream:
        text = io.TextIOWrapper(cast(Any, stream), encoding=encoding, errors="replace", newline="")
        rows = csv.DictReader(text, delimiter=delimiter)
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


def opened(piece: Piece) -> ByteStream:
    """The uncompressed bytes of a whole file.

    Args:
        piece: Of the file.
    """
    raw = open_binary(piece.path)
    if piece.compression == "gzip":
        import gzip

        return cast(ByteStream, gzip.open(cast(Any, raw)))
    if piece.compression == "zstd":
        import zstandard

        return cast(
            ByteStream,
            zstandard.ZstdDecompressor().stream_reader(cast(Any, raw), read_across_frames=True, closefd=True),
        )
    return raw


def _lines(piece: Piece, max_bytes: int) -> Iterator[tuple[int, bytes | MemberEnd]]:
    if piece.compression == "gzip":
        with closing(open_binary(piece.path)) as stream:
            yield from _gzip_lines(stream, max_bytes)
    else:
        with closing(opened(piece)) as stream:
            stop = 1 << 62 if piece.compression else piece.stop
            yield from parts(stream, piece.start, stop, b"\n", max_bytes)


def _gzip_lines(stream: ByteStream, max_bytes: int) -> Iterator[tuple[int, bytes | MemberEnd]]:
    """Lines of the whole members; a line that a damaged member cuts off is passed over with it."""
    segment = _Segment(read_members(stream))
    while not segment.is_at_end:
        last: tuple[int, bytes] | None = None
        for found in split(segment, segment.num_read, b"\n", max_bytes):
            if last is not None:
                yield last
            last = found
        if segment.damage is None and last is not None:
            yield last
        elif segment.damage is not None:
            yield segment.num_read, segment.damage
            segment.damage = None


class _Segment:
    """The uncompressed bytes of gzip members up to the first damaged one, as a stream."""

    def __init__(self, members: Iterator[bytes | MemberEnd]):
        self._members = members
        self.num_read = 0
        self.damage: MemberEnd | None = None
        self.is_at_end = False

    def read(self, _: int, /) -> bytes:
        for item in self._members:
            if isinstance(item, bytes):
                self.num_read += len(item)
                return item
            if item.error:
                self.damage = item
                return b""
        self.is_at_end = True
        return b""


def _read_array(reading: Reading) -> Iterable[Verdict] | None:
    """The records of a file that is one JSON value; None when it is not."""
    if reading.piece.size > _MAX_JSON_BYTES:
        return None
    with closing(opened(reading.piece)) as stream:
        content = stream.read()
    try:
        value = _loads(content)
    except ValueError:
        return None
    records = value if isinstance(value, list) else [value]
    return (_from_record(reading, record, number) for number, record in enumerate(records))


def _parsed(reading: Reading, line: bytes, offset: int) -> Verdict:
    try:
        record = _loads(line)
    except ValueError as error:
        return reading.dropped("not JSON", str(error), offset, line.decode("utf-8", "replace"))
    return _from_record(reading, record, offset)


def _loads(content: bytes) -> Any:
    import orjson

    try:
        return orjson.loads(content)
    except ValueError:
        return json.loads(content.decode("utf-8", "replace"))  # halves of surrogate pairs, NaN, bytes that are no UTF-8


def _from_record(reading: Reading, record: Any, position: int) -> Verdict:
    if not isinstance(record, dict):
        return reading.dropped("no record", f"a {type(record).__name__} where an object is wanted", position)
    field = reading.source.text_field
    text = record.pop(field, None)
    if not isinstance(text, str):
        found = f"holds {text!r:.60}" if text is not None else f"is not among {sorted(map(str, record))}"
        return reading.dropped("no text field", f"{field!r} {found}", position)
    return reading.document(text, position, **{str(k): _plain(v) for k, v in record.items()})


def _plain(value: Any) -> Any:
    """Metadata that JSON can hold."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    if isinstance(value, dict):
        return {_plain(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value)
