"""Documents that are files or pages: text, Markdown, source code, HTML, WARC."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import PurePosixPath
from typing import Any

from lmstack.prep import stdlib_corpus
from lmstack.prep.collect.gzip_members import MemberEnd, read_members
from lmstack.prep.collect.reading import Reading
from lmstack.prep.collect.records import opened
from lmstack.prep.collect.source import CODE_SUFFIXES, open_binary
from lmstack.prep.document import Verdict
from lmstack.prep.parts import TooLong, split


def read_text(reading: Reading) -> Iterator[Verdict]:
    """A document a file, or one between separators; of source code the language is noted.

    Args:
        reading: Of the piece.
    """
    name = reading.piece.path.lower().removesuffix(".gz").removesuffix(".zst")
    code = CODE_SUFFIXES.get(PurePosixPath(name).suffix)
    metadata = {"format": reading.piece.format or "text"} | ({"programming_language": code} if code else {})
    separator = reading.source.separator
    limit = reading.source.max_document_bytes
    with closing(opened(reading.piece)) as stream:
        if separator is None:
            content = stream.read(limit + 1)
            if len(content) > limit:
                excerpt = content[:2000].decode("utf-8", "replace")
                yield reading.dropped("too long", f"a file of more than {limit:,} bytes", 0, excerpt)
            else:
                yield reading.document(reading.decoded(content), 0, **metadata)
            return
        for offset, part in split(stream, 0, separator.encode(reading.source.encoding or "utf-8"), limit):
            if isinstance(part, TooLong):
                excerpt = part[:2000].decode("utf-8", "replace")
                yield reading.dropped("too long", f"more than {limit:,} bytes", offset, excerpt)
            else:
                yield reading.document(reading.decoded(part), offset, **metadata)


def read_html(reading: Reading) -> Iterator[Verdict]:
    """A page a file, as it is; taking the text out of it is the next stage's work.

    Args:
        reading: Of the piece.
    """
    with closing(opened(reading.piece)) as stream:
        content = stream.read(reading.source.max_document_bytes + 1)
    yield reading.document(_page_text(reading, content), 0, format="html")


def read_warc(reading: Reading) -> Iterator[Verdict]:
    """The pages of a crawl: responses of type HTML or plain text, with their address and date.

    Args:
        reading: Of the piece.
    """
    if reading.piece.compression != "gzip":
        with closing(opened(reading.piece)) as stream:
            yield from _records(reading, stream, 0)
        return
    with closing(open_binary(reading.piece.path)) as stream:
        limit = 2 * reading.source.max_document_bytes
        member = bytearray()
        for item in read_members(stream):
            if isinstance(item, bytes):
                if len(member) <= limit:
                    member += item
                continue
            yield from _member(reading, bytes(member), item, limit)
            member.clear()


def read_python(reading: Reading) -> Iterator[Verdict]:
    """Texts that this Python carries.

    Args:
        reading: Of the piece; its start and stop count modules or topics.
    """
    piece = reading.piece
    for text, key in stdlib_corpus.documents(piece.path, piece.start, piece.stop):
        code = {"programming_language": "python"} if piece.path == "python:source" else {}
        yield reading.document(text, piece.start, key=key, format="code" if code else "text", **code)


def _member(reading: Reading, content: bytes, end: MemberEnd, limit: int) -> Iterator[Verdict]:
    """The record of a member: one record is one member, as the WARC standard recommends."""
    import io

    if end.error:
        yield reading.dropped("corrupt gzip member", f"at byte {end.offset}: {end.error}", end.offset)
    elif len(content) > limit:
        yield reading.dropped("too long", f"a record of more than {limit:,} bytes", end.offset)
    else:
        yield from _records(reading, io.BytesIO(content), end.offset)


def _records(reading: Reading, stream: Any, offset: int) -> Iterator[Verdict]:
    from fastwarc import ArchiveIterator, WarcRecordType

    wanted = WarcRecordType.response | WarcRecordType.conversion | WarcRecordType.resource
    for record in ArchiveIterator(stream, record_types=wanted, parse_http=True):
        position = offset + record.stream_pos
        kind = (record.http_content_type if record.is_http else record.headers.get("Content-Type")) or "text/html"
        kind = kind.partition(";")[0].strip().lower()
        url = (record.headers.get("WARC-Target-URI") or "").strip("<>")
        if kind not in ("text/html", "application/xhtml+xml", "text/plain"):
            yield reading.dropped("not a page", f"{kind} at {url}", position)
            continue
        if record.is_http and record.http_headers is not None and record.http_headers.status_code not in (200, None):
            yield reading.dropped("not a page", f"HTTP status {record.http_headers.status_code} at {url}", position)
            continue
        content = record.reader.read(reading.source.max_document_bytes + 1)
        is_plain = kind == "text/plain"
        text = reading.decoded(content) if is_plain else _page_text(reading, content, record.http_charset)
        date = record.headers.get("WARC-Date", "")
        yield reading.document(text, position, format="text" if is_plain else "html", url=url, date=date)


def _page_text(reading: Reading, content: bytes, declared: str | None = None) -> str:
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    encoding = reading.source.encoding or declared
    if encoding is None or not _decodes(content, encoding):
        encoding = "utf-8" if _decodes(content, "utf-8") else detect_encoding(content, from_html_meta=True) or "utf-8"
    try:
        text = content.decode(encoding, "replace")
    except LookupError:
        text = content.decode(map_encoding_to_html5(encoding) or "utf-8", "replace")
    if bad := text.count("\ufffd"):
        reading.counts["texts with undecodable bytes"] += 1
        reading.counts["undecodable bytes"] += bad
    return text.replace("\r\n", "\n")


def _decodes(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return False
    return True
