"""What is collected: files of many formats, local or in an object store, cut into pieces."""

import codecs
import glob
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from lmstack.prep import stdlib_corpus
from lmstack.prep.parts import ByteStream

Format = Literal["jsonl", "json", "parquet", "csv", "text", "markdown", "html", "warc", "code"]

CODE_SUFFIXES = {
    ".c": "c", ".h": "c", ".cc": "cpp", ".cpp": "cpp", ".hpp": "cpp", ".cs": "csharp", ".go": "go", ".java": "java",
    ".js": "javascript", ".jsx": "javascript", ".ts": "typescript", ".tsx": "typescript", ".kt": "kotlin",
    ".lua": "lua", ".php": "php", ".pl": "perl", ".py": "python", ".r": "r", ".rb": "ruby", ".rs": "rust",
    ".scala": "scala", ".sh": "shell", ".sql": "sql", ".swift": "swift",
}  # fmt: skip
"""Programming language by suffix."""

_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv",
    ".txt": "text", ".text": "text", ".rst": "text", ".md": "markdown", ".markdown": "markdown", ".html": "html",
    ".htm": "html", ".xhtml": "html", ".warc": "warc",
}  # fmt: skip
_FORMATS |= dict.fromkeys(CODE_SUFFIXES, "code")
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_MAY_BE_CUT = ("jsonl", "parquet")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Files of one kind.

    Attributes:
        paths: Files, folders (with everything in them that has a known suffix) and globs; also URLs that fsspec knows,
            such as s3://bucket/crawl/*.warc.gz, and the texts of this Python (`python:reference`).
        format: How to read every file; null goes by the suffix, `.gz` and `.zst` aside.
        text_field: Field or column that holds the text.
        separator: What stands between the documents of a text file; null makes each file one document.
        encoding: Of text; null detects it file by file, and takes JSON for UTF-8.
        max_document_bytes: What is longer is dropped, and never held in memory whole.
        metadata: Given to every document of the source, such as a licence.
    """

    paths: str | list[str]
    format: Format | None = None
    text_field: str = "text"
    separator: str | None = None
    encoding: str | None = None
    max_document_bytes: int = 1 << 24
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.separator == "":
            raise ValueError("separator is empty. Name the text between documents, or null for one document a file.")
        if self.encoding is not None:
            try:
                codecs.lookup(self.encoding)
            except LookupError:
                raise ValueError(
                    f"encoding={self.encoding!r} is not known to Python. Use one such as gb18030."
                ) from None
        if self.max_document_bytes < 1:
            raise ValueError(f"max_document_bytes={self.max_document_bytes} leaves no document. Use 16777216.")


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


def list_pieces(name: str, source: Source, max_bytes: int) -> list[Piece]:
    """Every stretch of a source, in an order that depends on the names of its files only.

    Args:
        name: Name of the source, for error messages.
        source: What to list.
        max_bytes: Files that can be cut are cut into pieces of about this size.

    Raises:
        ValueError: A path names nothing, or a folder in it cannot be listed.
    """
    pieces: list[Piece] = []
    seen: set[str] = set()
    for path in [source.paths] if isinstance(source.paths, str) else source.paths:
        if path.startswith("python:"):
            sizes = stdlib_corpus.sizes(path)
            pieces += [Piece(path, "python", "", i, i + 1, size) for i, size in enumerate(sizes)]
            continue
        files = _list_files(path)
        if not files:
            raise ValueError(
                f"Source {name!r}: {path} names no file. Check the path; files, folders and globs are read."
            )
        for file, size in files:
            if file not in seen:  # two patterns may name it
                pieces += _cut(file, size, source, max_bytes)
                seen.add(file)
    return pieces


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


def _list_files(path: str) -> list[tuple[str, int]]:
    if "://" in path:
        return sorted(_list_remote(path))
    if os.path.isdir(path):
        found = [file for file in _walk(path) if _format(file)[0] is not None]
    else:
        found = [path] if os.path.lexists(path) else glob.glob(path, recursive=True)
        # a folder that is called a.jsonl is no file; the reader reports it
        found = [file for file in found if _format(file)[0] is not None or not os.path.isdir(file)]
    return [(file, _size(file)) for file in sorted(found)]


def _walk(path: str) -> Iterator[str]:
    """Every file in a folder and the folders in it, also where links lead; a folder that two lead to is read once."""

    def refuse(error: OSError) -> None:
        raise ValueError(
            f"The folder {error.filename} cannot be listed: {error.strerror}. Make it readable, or name others."
        )

    seen: set[str] = set()
    for folder, folders, files in os.walk(path, onerror=refuse, followlinks=True):
        folders.sort()
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (os.path.join(folder, file) for file in files)


def _size(file: str) -> int:
    try:
        return os.path.getsize(file)
    except OSError:
        return 0  # a link that leads nowhere, say; the reader reports it


def _list_remote(path: str) -> Iterator[tuple[str, int]]:
    from fsspec.core import url_to_fs

    system, root = url_to_fs(path)
    names = system.glob(root) if glob.has_magic(root) else system.find(root)
    is_folder = system.isdir(root)
    for name in names:
        if not is_folder or _format(name)[0] is not None:
            yield system.unstrip_protocol(name), system.info(name)["size"]


def _format(file: str) -> tuple[Format | None, str]:
    stem, suffix = os.path.splitext(file.lower())
    compression = _COMPRESSIONS.get(suffix, "")
    if compression:
        suffix = os.path.splitext(stem)[1]
        if suffix == ".json":
            suffix = ".jsonl"  # .json.gz is how C4 and others name their lines
    return _FORMATS.get(suffix), compression


def _cut(file: str, size: int, source: Source, max_bytes: int) -> list[Piece]:
    by_suffix, compression = _format(file)
    file_format = source.format or by_suffix
    whole = [Piece(file, file_format, compression, 0, size, size)]
    if file_format not in _MAY_BE_CUT or compression or size <= max_bytes:
        return whole
    if file_format == "parquet":
        return _row_groups(file, whole)
    try:
        with closing(open_binary(file)) as stream:
            begins_array = stream.read(4096).lstrip()[:1] == b"["
    except OSError:
        return whole  # the reader says what is wrong with it
    if begins_array:
        return whole  # perhaps a JSON array, which has to be read from its beginning
    starts = range(0, size, max_bytes)
    return [Piece(file, file_format, "", i, min(i + max_bytes, size), min(max_bytes, size - i)) for i in starts]


def _row_groups(file: str, whole: list[Piece]) -> list[Piece]:
    import pyarrow.parquet as parquet

    try:
        with closing(open_binary(file)) as stream:
            groups = parquet.ParquetFile(stream).metadata
            sizes = [groups.row_group(i).total_byte_size for i in range(groups.num_row_groups)]
    except (OSError, ValueError):
        return whole
    return [Piece(file, "parquet", "", i, i + 1, size) for i, size in enumerate(sizes)] or whole
