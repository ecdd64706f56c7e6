"""The bytes of a piece, uncompressed: as one stream, or what stands between separators."""

import io
from collections.abc import Iterator
from contextlib import closing
from typing import cast

from lmstack.prep.collect.members import Compression, Decompressed, MemberEnd, read_members
from lmstack.prep.collect.source import Piece, open_binary
from lmstack.prep.parts import ByteStream, parts, split


def opened(piece: Piece) -> ByteStream:
    """The uncompressed bytes of a whole file; an `OSError` as soon as one meets damage.

    Args:
        piece: Of the file.
    """
    raw = open_binary(piece.path)
    if not piece.compression:
        return raw
    return cast(ByteStream, io.BufferedReader(Decompressed(raw, cast(Compression, piece.compression))))


def separated(piece: Piece, separator: bytes, max_bytes: int) -> Iterator[tuple[int, bytes | MemberEnd]]:
    """Offset and bytes of what stands between separators; a damaged member instead of what it held.

    What such a member cuts off is passed over with it.

    Args:
        piece: What is read; a compressed file whole.
        separator: What stands between parts.
        max_bytes: As in `parts`.
    """
    with closing(open_binary(piece.path)) as stream:
        if not piece.compression:
            yield from parts(stream, piece.start, piece.stop, separator, max_bytes)
            return
        segment = _Segment(read_members(stream, cast(Compression, piece.compression)))
        while not segment.is_at_end:
            last: tuple[int, bytes] | None = None
            for found in split(segment, segment.num_read, separator, max_bytes):
                if last is not None:
                    yield last
                last = found
            if segment.damage is not None:
                yield segment.num_read, segment.damage
                segment.damage = None
            elif last is not None:
                yield last


class _Segment:
    """The uncompressed bytes of members up to the first damaged one, as a stream."""

    def __init__(self, members: Iterator[bytes | MemberEnd]):
        self._members = members
        self.num_read = 0
        self.damage: MemberEnd | None = None
        self.is_at_end = False

    def read(self, _: int, /) -> bytes:
        """The next block, whatever its size; none before a damaged member, and at the end."""
        for item in self._members:
            if isinstance(item, bytes):
                self.num_read += len(item)
                return item
            if item.error:
                self.damage = item
                return b""
        self.is_at_end = True
        return b""
