"""Compressed files, member by member (gzip) or frame by frame (zstandard): a damaged one is passed over."""

import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from lmstack.prep.parts import ByteStream, Readable

Compression = Literal["gzip", "zstd"]

_STEP_BYTES = 1 << 10
"""So little that what comes out at a time fits into memory: zstandard packs 128 KiB into 4 bytes."""

_MAGIC: dict[Compression, bytes] = {"gzip": b"\x1f\x8b\x08", "zstd": b"\x28\xb5\x2f\xfd"}


@dataclass(frozen=True)
class MemberEnd:
    """The end of a member.

    Attributes:
        compression: Of the file.
        offset: First byte of the member in the file.
        error: What is wrong with it; empty when it is whole.
    """

    compression: Compression
    offset: int
    error: str = ""

    @property
    def reason(self) -> str:
        """What a drop for it is called."""
        return "corrupt gzip member" if self.compression == "gzip" else "corrupt zstd frame"

    @property
    def detail(self) -> str:
        """Where it is and what is wrong with it."""
        return f"at byte {self.offset:,}: {self.error}"


def read_members(stream: Readable, compression: Compression) -> Iterator[bytes | MemberEnd]:
    """The uncompressed blocks of every member, a `MemberEnd` after each.

    Args:
        stream: A compressed file, at its beginning.
        compression: How.
    """
    magic = _MAGIC[compression]
    new_decompressor, damage = _codec(compression)
    buffer, begin = stream.read(_STEP_BYTES), 0
    while buffer:
        taken = 0  # bytes of this member that have left the buffer
        error = ""
        decompressor = new_decompressor()
        first = buffer[: len(magic)]
        try:
            while not decompressor.eof:
                buffer = buffer or stream.read(_STEP_BYTES)
                if not buffer:
                    error = "the file ends within it"
                    break
                block = decompressor.decompress(buffer)
                rest = decompressor.unused_data if decompressor.eof else b""
                taken += len(buffer) - len(rest)
                buffer = rest
                if block:
                    yield block
        except damage as failure:
            error = str(failure)
            dropped, buffer = _next_member(stream, buffer, magic, at_start=first == magic and taken == 0)
            taken += dropped
        yield MemberEnd(compression, begin, error)
        begin += taken
        buffer = buffer or stream.read(_STEP_BYTES)


class Decompressed(io.RawIOBase):
    """What all members hold, as one stream; reading on at a damaged one is an `OSError`."""

    def __init__(self, raw: ByteStream, compression: Compression):
        """Begin to read.

        Args:
            raw: The compressed file, at its beginning; closed with this one.
            compression: How.
        """
        super().__init__()
        self._raw = raw
        self._members = read_members(raw, compression)
        self._block = b""

    def readable(self) -> bool:
        """It can be read."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer with the next bytes, not more than one block; 0 at the end.

        Args:
            buffer: To fill.

        Raises:
            OSError: The next member is damaged.
        """
        while not self._block:
            item = next(self._members, None)
            if item is None:
                return 0
            if isinstance(item, bytes):
                self._block = item
            elif item.error:
                raise OSError(f"{item.reason} {item.detail}")
        size = min(len(buffer), len(self._block))
        buffer[:size] = self._block[:size]
        self._block = self._block[size:]
        return size

    def close(self) -> None:
        """Close the compressed file too."""
        self._raw.close()
        super().close()


def _codec(compression: Compression) -> tuple[Callable[[], Any], type[Exception]]:
    """What makes decompressors, and what they raise."""
    if compression == "gzip":
        return (lambda: zlib.decompressobj(wbits=31)), zlib.error
    import zstandard

    return zstandard.ZstdDecompressor().decompressobj, zstandard.ZstdError


def _next_member(stream: Readable, buffer: bytes, magic: bytes, at_start: bool) -> tuple[int, bytes]:
    """Bytes to pass over and what follows them, from the next place that looks like the beginning of a member."""
    dropped = 1 if at_start else 0
    buffer = buffer[dropped:]
    while (found := buffer.find(magic)) < 0:
        kept = len(magic) - 1
        dropped += max(0, len(buffer) - kept)
        block = stream.read(_STEP_BYTES)
        if not block:
            return dropped + min(len(buffer), kept), b""
        buffer = buffer[-kept:] + block
    return dropped + found, buffer[found:]
