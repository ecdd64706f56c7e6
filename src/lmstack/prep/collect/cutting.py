"""Files cut into pieces that processes read side by side, and pieces packed into partitions of even size."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, cast

from lmstack.prep import stdlib_corpus
from lmstack.prep.parts import ByteStream

Format = Literal["jsonl", "json", "parquet", "csv", "text", "markdown", "html", "warc", "code"]


@dataclass(frozen=True)
class Piece:
    """A stretch of a file that one process reads at a time.

    Attributes:
        path: File or URL.
        format: How it is read; None where the suffix says nothing.
        compression: `gzip`, `zstd` or empty.
        start: First byte; the first row group of Parquet.
        stop: One past the last.
        size: Bytes to read, for partitions of even size and for the progress bar.
    """

    path: str
    format: Format | Literal["python"] | None
    compression: str
    start: int
    stop: int
    size: int


def python_pieces(name: str) -> list[Piece]:
    """A piece for each module or topic of the texts of this Python.

    Args:
        name: Such as `python:reference`.
    """
    return [Piece(name, "python", "", i, i + 1, size) for i, size in enumerate(stdlib_corpus.sizes(name))]


def stretches(file: str, file_format: Format | None, size: int, max_bytes: int) -> list[Piece]:
    """A file cut into pieces of a number of bytes.

    Args:
        file: Not compressed.
        file_format: Of it.
        size: Its bytes; an empty file is one piece.
        max_bytes: Of a piece.
    """
    starts = range(0, max(size, 1), max_bytes)
    return [Piece(file, file_format, "", i, min(i + max_bytes, size), min(max_bytes, size - i)) for i in starts]


def row_groups(file: str) -> list[Piece]:
    """The row groups of a Parquet file.

    Args:
        file: Here or in an object store.

    Raises:
        ValueError: It is no Parquet file.
    """
    import pyarrow.parquet as parquet

    with closing(open_binary(file)) as stream:
        try:
            groups = parquet.ParquetFile(stream).metadata
        except ValueError as error:  # ArrowInvalid
            raise ValueError(f"{file} is not a Parquet file: {error}. Repair the file or leave it out.") from error
        sizes = [groups.row_group(i).total_byte_size for i in range(groups.num_row_groups)]
    return [Piece(file, "parquet", "", i, i + 1, size) for i, size in enumerate(sizes)]


def packed(pieces: Iterable[Piece], max_bytes: int) -> Iterator[tuple[Piece, ...]]:
    """Pieces in order, as many together as hold a number of bytes; a larger one alone.

    Args:
        pieces: Of one source.
        max_bytes: Of a pack.
    """
    part: list[Piece] = []
    size = 0
    for piece in pieces:
        if part and size + piece.size > max_bytes:
            yield tuple(part)
            part, size = [], 0
        part.append(piece)
        size += piece.size
    if part:
        yield tuple(part)


def file_state(path: str) -> Any:
    """What shows that a file has changed, without reading it; None if it is not there.

    Args:
        path: File, URL, or texts of this Python.
    """
    if path.startswith("python:"):
        return sys.version
    if "://" in path:
        return path
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def open_binary(path: str) -> ByteStream:
    """A file or URL, open for reading bytes.

    Args:
        path: Which.
    """
    if "://" not in path:
        return cast(ByteStream, open(path, "rb"))
    import fsspec

    stream: ByteStream = fsspec.open(path, "rb").open()
    return stream
