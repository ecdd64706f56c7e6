"""The bytes of a piece, uncompressed: as one stream, or what stands between separators."""

import codecs
import io
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import cast

from lmstack.prep.collect.cutting import Piece, open_binary
from lmstack.prep.collect.encoding import is_ascii_compatible
from lmstack.prep.collect.members import Compression, Decompressed, MemberEnd, read_members
from lmstack.prep.parts import BLOCK_BYTES, ByteStream, parts, split


def opened(piece: Piece) -> ByteStream:
    """The uncompressed bytes of a whole file; an `OSError` as soon as one meets damage.

    Args:
        piece: Of the file.
    """
    raw = open_binary(piece.path)
    if not piece.compression:
        return raw
    return cast(ByteStream, io.BufferedReader(Decompressed(raw, cast(Compression, piece.compression))))


def beginning(piece: Piece, size: int = 1 << 16) -> bytes:
    """The first bytes of a file, uncompressed; none where they are damaged.

    Args:
        piece: Of the file.
        size: How many.
    """
    with closing(opened(piece)) as stream:
        try:
            return stream.read(size)
        except OSError:
            return b""


def separated(
    piece: Piece, separator: str, encoding: str, max_bytes: int | None = None
) -> Iterator[tuple[int, bytes | MemberEnd]]:
    """Offset and bytes of what stands between separators; a damaged member instead of what it held.

    What such a member cuts off is passed over with it. Of a file that is not `is_ascii_compatible` all this is in
    UTF-8, with U+FFFD for what cannot be decoded.

    Args:
        piece: What is read; whole if it is compressed or not `is_ascii_compatible`.
        separator: What stands between parts.
        encoding: Of the file.
        max_bytes: As in `parts`.
    """
    with closing(open_binary(piece.path)) as stream:
        is_plain = is_ascii_compatible(encoding)
        mark = separator.encode(encoding if is_plain else "utf-8")
        if is_plain and not piece.compression:
            yield from parts(stream, piece.start, piece.stop, mark, max_bytes)
            return
        blocks: Iterator[bytes | MemberEnd] = iter(partial(stream.read, BLOCK_BYTES), b"")
        if piece.compression:
            blocks = read_members(stream, cast(Compression, piece.compression))
        segment = _Segment(blocks, None if is_plain else codecs.getincrementaldecoder(encoding)("replace"))
        while not segment.is_at_end:
            last: tuple[int, bytes] | None = None
            for found in split(segment, segment.num_read, mark, max_bytes):
                if last is not None:
                    yield last
                last = found
            if segment.damage is not None:
                yield segment.num_read, segment.damage
                segment.damage = None
            elif last is not None:
                yield last


class _Segment:
    """The uncompressed bytes of members up to the first damaged one, as a stream; in UTF-8 if there is a decoder."""

    def __init__(self, blocks: Iterator[bytes | MemberEnd], decoder: codecs.IncrementalDecoder | None):
        self._blocks = blocks
        self._decoder = decoder
        self.num_read = 0
        self.damage: MemberEnd | None = None
        self.is_at_end = False

    def read(self, _: int, /) -> bytes:
        """The next block, whatever its size; none before a damaged member, and at the end."""
        for item in self._blocks:
            if isinstance(item, bytes):
                if block := self._decoded(item):
                    return block
            elif item.error:
                self.damage = item
                if self._decoder is not None:
                    self._decoder.reset()
                return b""
        self.is_at_end = True
        return self._decoded(b"", final=True)

    def _decoded(self, block: bytes, final: bool = False) -> bytes:
        if self._decoder is not None:
            block = self._decoder.decode(block, final).encode()
        self.num_read += len(block)
        return block
