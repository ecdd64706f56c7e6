"""The pages of a crawl, from WARC files; a damaged record is passed over, and the next one is looked for."""

import io
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from lmstack.prep.collect.cutting import open_binary
from lmstack.prep.collect.members import MemberEnd, read_members
from lmstack.prep.collect.opening import opened
from lmstack.prep.collect.pages import page_text
from lmstack.prep.collect.payload import can_unpack, unpacked
from lmstack.prep.collect.reading import Reading
from lmstack.prep.document import Dropped, Verdict
from lmstack.prep.parts import BLOCK_BYTES, ByteStream

_CORRUPT = "corrupt WARC record"
_BEFORE_RECORD = b"\r\n\r\n"
_RECORD = _BEFORE_RECORD + b"WARC/"
_PAGE_TYPES = ("text/html", "application/xhtml+xml", "text/plain")


def read_warc(reading: Reading) -> Iterator[Verdict]:
    """Responses of type HTML or plain text from the web, with their address and date.

    Args:
        reading: Of the piece.
    """
    match reading.piece.compression:
        case "gzip":
            yield from _read_members(reading)
        case "":
            yield from _read_plain(reading)
        case _:
            with closing(opened(reading.piece)) as stream:
                yield from (verdict for _, verdict in _records(reading, stream, 0))


def _read_members(reading: Reading) -> Iterator[Verdict]:
    """One record is one member, as the WARC standard recommends."""
    limit = 2 * reading.source.max_document_bytes
    member = bytearray()
    with closing(open_binary(reading.piece.path)) as stream:
        for item in read_members(stream, "gzip"):
            if isinstance(item, bytes):
                if len(member) <= limit:
                    member += item
                continue
            yield from _read_member(reading, bytes(member), item, limit)
            member.clear()


def _read_member(reading: Reading, content: bytes, end: MemberEnd, limit: int) -> Iterator[Verdict]:
    if end.error:
        yield reading.damaged(end)
    elif len(content) > limit:
        detail = f"a record of more than {limit:,} bytes, or many that are not compressed one by one"
        yield reading.dropped("too long", detail, end.offset)
    else:
        try:
            yield from (verdict for _, verdict in _records(reading, io.BytesIO(content), end.offset))
        except (OSError, ValueError) as error:
            yield reading.dropped(_CORRUPT, f"in the member at byte {end.offset:,}: {error}", -1 - end.offset)


def _read_plain(reading: Reading) -> Iterator[Verdict]:
    with closing(open_binary(reading.piece.path)) as stream:
        begin: int | None = 0
        while begin is not None:
            stream.seek(begin)
            last = begin
            try:
                for position, verdict in _records(reading, stream, begin):
                    last = position
                    yield verdict
                    if isinstance(verdict, Dropped) and verdict.reason == _CORRUPT:
                        break
                else:
                    return
            except (OSError, ValueError) as error:
                yield reading.dropped(_CORRUPT, f"behind byte {last:,}: {error}", -1 - last)
            begin = _next_record(stream, last + 1)


def _next_record(stream: ByteStream, start: int) -> int | None:
    """Where the next thing begins that looks like a record."""
    stream.seek(start)
    seen = b""
    while block := stream.read(BLOCK_BYTES):
        seen += block
        if (found := seen.find(_RECORD)) >= 0:
            return start + found + len(_BEFORE_RECORD)
        start += max(0, len(seen) - len(_RECORD))
        seen = seen[-len(_RECORD) :]
    return None


def _records(reading: Reading, stream: Any, offset: int) -> Iterator[tuple[int, Verdict]]:
    from fastwarc import ArchiveIterator, WarcRecordType

    wanted = WarcRecordType.response | WarcRecordType.conversion | WarcRecordType.resource
    for record in ArchiveIterator(stream, record_types=wanted, parse_http=True):
        position = offset + record.stream_pos
        yield position, _page(reading, record, position)


def _page(reading: Reading, record: Any, position: int) -> Verdict:
    kind = (record.http_content_type if record.is_http else record.headers.get("Content-Type")) or "text/html"
    kind = kind.partition(";")[0].strip().lower()
    url = (record.headers.get("WARC-Target-URI") or "").strip("<>")
    if not (record.headers.get("Content-Length") or "").strip().isdecimal():
        return reading.dropped(_CORRUPT, f"at byte {position:,}: it says no length", position)
    if why := _why_no_page(record, kind, url):
        return reading.dropped("not a page", f"{why} at {url}", position)
    limit = reading.source.max_document_bytes
    content = record.reader.read(limit + 1)
    if len(content) > limit:
        return reading.too_long(content, "a page", position)
    if len(content) < record.content_length:
        missing = f"{len(content):,} of {record.content_length:,} bytes are there"
        return reading.dropped(_CORRUPT, f"at byte {position:,}: {missing}", position)
    content = unpacked(content, *_encodings(record), limit=limit + 1)
    if len(content) > limit:
        return reading.too_long(content, "a page", position)
    is_plain = kind == "text/plain"
    text = reading.decoded(content) if is_plain else page_text(reading, content, record.http_charset)
    date = record.headers.get("WARC-Date", "")
    return reading.document(text, position, format="text" if is_plain else "html", url=url, date=date)


def _why_no_page(record: Any, kind: str, url: str) -> str:
    """What makes a record another thing than a page that can be read; empty if nothing does."""
    if not url.startswith(("http://", "https://")):
        return "not from the web"  # such as the crawler's own log
    if kind not in _PAGE_TYPES:
        return kind
    status = record.http_headers.status_code if record.is_http and record.http_headers is not None else None
    if status not in (200, None):
        return f"HTTP status {status}"
    _, encoding = _encodings(record)
    return "" if can_unpack(encoding) else f"content encoding {encoding}"


def _encodings(record: Any) -> tuple[str, str]:
    """Transfer-Encoding and Content-Encoding of a response; empty where it has none."""
    if record.http_headers is None:
        return "", ""
    return record.http_headers.get("Transfer-Encoding") or "", record.http_headers.get("Content-Encoding") or ""
