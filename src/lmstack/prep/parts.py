"""The stretches of a file between separators, where it may be cut anywhere for several processes."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

BLOCK_BYTES = 1 << 20


@runtime_checkable
class Readable(Protocol):
    """What bytes can be read from."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end.

        Args:
            size: How many.
        """
        ...


@runtime_checkable
class ByteStream(Readable, Protocol):
    """An open file, here or in an object store, perhaps uncompressed as it is read."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; all that are left with -1.

        Args:
            size: How many.
        """
        ...

    def seek(self, offset: int, /) -> int:
        """Go to a place.

        Args:
            offset: Bytes from the beginning.
        """
        ...

    def close(self) -> None:
        """Close it."""
        ...


class TooLong(bytes):
    """The beginning of a part that is longer than allowed; the rest of it was passed over."""


def parts(
    stream: ByteStream, start: int, stop: int, separator: bytes, max_bytes: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of what stands between separators, where it begins from `start` to before `stop`.

    Stretches side by side give every part of the file once: a separator that cannot overlap itself is one wherever
    reading starts. Nothing follows a separator at the very end of the file.

    Args:
        stream: The file, at its beginning; one that can seek unless `start` is 0.
        start: First byte of the stretch.
        stop: One past its last.
        separator: What stands between parts.
        max_bytes: A longer part is given as its beginning, a `TooLong`, and never held in memory whole; None for any.
    """
    buffer, begin = bytearray(), 0
    if start > 0:
        begin = max(0, start - len(separator))
        stream.seek(begin)
        passed = _pass_over(stream, buffer, separator, stop - begin)  # the end of a part that begins before
        if passed is None:
            return
        begin += passed
    for offset, part in _split(stream, buffer, begin, separator, max_bytes):
        if offset >= stop:
            return
        yield offset, part


def split(stream: Readable, offset: int, separator: bytes, max_bytes: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of every part of a stream.

    Args:
        stream: Read to its end.
        offset: Where in the file the stream stands.
        separator: What stands between parts.
        max_bytes: As in `parts`.
    """
    return _split(stream, bytearray(), offset, separator, max_bytes)


def _split(
    stream: Readable, buffer: bytearray, offset: int, separator: bytes, max_bytes: int | None
) -> Iterator[tuple[int, bytes]]:
    """The parts of what has been read already and of what follows."""
    searched = 0
    while True:
        found = buffer.find(separator, searched)
        if found >= 0:
            yield offset, _limited(buffer[:found], max_bytes)
            del buffer[: found + len(separator)]
            offset += found + len(separator)
            searched = 0
        elif max_bytes is not None and len(buffer) >= max_bytes + len(separator):
            yield offset, TooLong(buffer[:max_bytes])
            passed = _pass_over(stream, buffer, separator)
            if passed is None:
                return
            offset += passed
            searched = 0
        elif block := stream.read(BLOCK_BYTES):
            searched = max(0, len(buffer) - len(separator) + 1)
            buffer += block
        else:
            yield offset, _limited(buffer, max_bytes)
            return


def _limited(part: bytes | bytearray, max_bytes: int | None) -> bytes:
    return bytes(part) if max_bytes is None or len(part) <= max_bytes else TooLong(part[:max_bytes])


def _pass_over(stream: Readable, buffer: bytearray, separator: bytes, most: int | None = None) -> int | None:
    """Drop everything up to and with the next separator; bytes dropped, or None if there is none, or not in `most`."""
    passed = 0
    while (found := buffer.find(separator)) < 0:
        kept = len(separator) - 1
        passed += max(0, len(buffer) - kept)
        del buffer[: max(0, len(buffer) - kept)]
        if most is not None and passed >= most:
            return None
        block = stream.read(BLOCK_BYTES)
        if not block:
            return None
        buffer += block
    del buffer[: found + len(separator)]
    return passed + found + len(separator)
