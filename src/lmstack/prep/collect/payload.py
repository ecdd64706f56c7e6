"""The body of a response of the web as it was before the server cut it into chunks and packed it."""

import re
import zlib

_PACKED = ("gzip", "x-gzip", "deflate")
_SIZE = re.compile(rb"[0-9a-fA-F]{1,16}")
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


def can_unpack(encoding: str) -> bool:
    """Whether `unpacked` knows a Content-Encoding; br and zstd it does not.

    Args:
        encoding: Its name, empty for none.
    """
    return encoding.strip().lower() in ("", "identity", *_PACKED)


def unpacked(content: bytes, transfer: str, encoding: str, *, limit: int) -> bytes:
    """The body, or what came where its head is wrong: archives often hold the body unpacked and the head as it was.

    Args:
        content: As it stands in the archive.
        transfer: Its Transfer-Encoding, empty for none.
        encoding: Its Content-Encoding, one that can be unpacked.
        limit: Most bytes to unpack.
    """
    if "chunked" in transfer.lower():
        content = joined_chunks(content)
    if encoding.strip().lower() not in _PACKED:
        return content
    try:
        return zlib.decompressobj(_GZIP_OR_ZLIB).decompress(content, limit)
    except zlib.error:
        return content


def joined_chunks(content: bytes) -> bytes:
    """A chunked body (RFC 9112, section 7.1) in one piece; as it is where it does not begin with a chunk.

    Args:
        content: Chunks, each after its size in hexadecimal; the last may be cut off.
    """
    parts: list[bytes] = []
    place = 0
    while place < len(content):
        head, _, _ = content[place : place + 1024].partition(b"\r\n")
        size_text = head.partition(b";")[0].strip()
        if not _SIZE.fullmatch(size_text):
            return b"".join([*parts, content[place:]])
        size = int(size_text, 16)
        start = place + len(head) + 2
        if size == 0:
            break
        parts.append(content[start : start + size])
        place = start + size + 2
    return b"".join(parts)
