"""Gzip, member by member: a damaged member is passed over, and the next one is looked for."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from lmstack.prep.parts import Readable

_BLOCK_BYTES = 1 << 18
_MAGIC = b"\x1f\x8b\x08"


@dataclass(frozen=True)
class MemberEnd:
    """The end of a member.

    Attributes:
        offset: First byte of the member in the file.
        error: What is wrong with it; empty when it is whole.
    """

    offset: int
    error: str = ""


def read_members(stream: Readable) -> Iterator[bytes | MemberEnd]:
    """The uncompressed blocks of every member, a `MemberEnd` after each.

    Args:
        stream: A gzip file, at its beginning.
    """
    buffer, begin = stream.read(_BLOCK_BYTES), 0
    while buffer:
        consumed = 0  # bytes of this member that have left the buffer
        error = ""
        decompressor = zlib.decompressobj(wbits=31)
        first = buffer[: len(_MAGIC)]
        try:
            while not decompressor.eof:
                if not buffer:
                    error = "the file ends within it"
                    break
                block = decompressor.decompress(buffer, _BLOCK_BYTES)
                left = decompressor.unconsumed_tail if not decompressor.eof else decompressor.unused_data
                consumed += len(buffer) - len(left)
                buffer = left or (b"" if decompressor.eof else stream.read(_BLOCK_BYTES))
                if block:
                    yield block
        except zlib.error as failure:
            error = str(failure)
            dropped, buffer = _next_member(stream, buffer, at_start=first == _MAGIC and consumed == 0)
            consumed += dropped
        yield MemberEnd(begin, error)
        begin += consumed
        if not buffer:
            buffer = stream.read(_BLOCK_BYTES)


def _next_member(stream: Readable, buffer: bytes, at_start: bool) -> tuple[int, bytes]:
    """Bytes to pass over and what follows them, from the next place that looks like a member's header."""
    dropped = 1 if at_start else 0
    buffer = buffer[dropped:]
    while (found := buffer.find(_MAGIC)) < 0:
        kept = len(_MAGIC) - 1
        dropped += max(0, len(buffer) - kept)
        block = stream.read(_BLOCK_BYTES)
        if not block:
            return dropped + min(len(buffer), kept), b""
        buffer = buffer[-kept:] + block
    return dropped + found, buffer[found:]
