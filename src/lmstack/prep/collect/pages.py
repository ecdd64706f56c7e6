"""Documents that are files: text, Markdown, source code, HTML, and the texts of this Python."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import PurePosixPath

from lmstack.prep import stdlib_corpus
from lmstack.prep.collect.encoding import UNDECODABLE, detect_encoding, is_ascii_compatible
from lmstack.prep.collect.members import MemberEnd
from lmstack.prep.collect.opening import beginning, opened, separated
from lmstack.prep.collect.reading import Reading
from lmstack.prep.collect.source import CODE_SUFFIXES
from lmstack.prep.document import Verdict
from lmstack.prep.parts import TooLong


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
    if separator is None:
        with closing(opened(reading.piece)) as stream:
            content = stream.read(limit + 1)
        if len(content) > limit:
            yield reading.too_long(content, "a file", 0)
        else:
            yield reading.document(reading.decoded(content), 0, **metadata)
        return
    encoding = reading.source.encoding or detect_encoding(beginning(reading.piece))
    is_plain = is_ascii_compatible(encoding)
    of_parts = reading if is_plain else reading.of_utf8()
    for offset, part in separated(reading.piece, separator, encoding, limit):
        if isinstance(part, MemberEnd):
            yield reading.damaged(part)
        elif isinstance(part, TooLong):
            yield reading.too_long(part, "a part", offset)
        else:
            if not is_plain:
                reading.counts[f"texts read as {encoding}"] += 1
                reading.count_undecodable(part.count(UNDECODABLE))
            yield reading.document(of_parts.decoded(part), offset, **metadata)


def read_html(reading: Reading) -> Iterator[Verdict]:
    """A page a file, as it is; taking the text out of it is the next stage's work.

    Args:
        reading: Of the piece.
    """
    limit = reading.source.max_document_bytes
    with closing(opened(reading.piece)) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        yield reading.too_long(content, "a page", 0)
    else:
        yield reading.document(page_text(reading, content), 0, format="html")


def read_python(reading: Reading) -> Iterator[Verdict]:
    """Texts that this Python carries.

    Args:
        reading: Of the piece; its start and stop count modules or topics.
    """
    piece = reading.piece
    for text, key in stdlib_corpus.documents(piece.path, piece.start, piece.stop):
        code = {"programming_language": "python"} if piece.path == "python:source" else {}
        yield reading.document(text, piece.start, key=key, format="code" if code else "text", **code)


def page_text(reading: Reading, content: bytes, declared: str | None = None) -> str:
    """The text of a page in the encoding that it declares, if that fits, or looks like; what is not is counted.

    Args:
        reading: Of the piece.
        content: The page.
        declared: By its server.
    """
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    encoding = reading.source.encoding or declared
    if encoding is None or not _decodes(content, encoding):
        encoding = "utf-8" if _decodes(content, "utf-8") else detect_encoding(content, from_html_meta=True) or "utf-8"
    try:
        text = content.decode(encoding, "replace")
    except (LookupError, ValueError):
        text = content.decode(map_encoding_to_html5(encoding) or "utf-8", "replace")
    reading.count_undecodable(text.count("\ufffd"))
    return text.replace("\r\n", "\n")


def _decodes(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except (ValueError, LookupError):  # also codecs that are for no text
        return False
    return True
