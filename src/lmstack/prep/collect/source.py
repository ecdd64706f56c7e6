"""What is collected: files of many formats, local or in an object store, cut into pieces."""

import codecs
import glob
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from lmstack.prep.collect.cutting import Format, Piece, open_binary, python_pieces, row_groups, stretches
from lmstack.prep.collect.encoding import is_ascii_compatible

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
            pieces += python_pieces(path)
            continue
        files = list_files(path)
        if not files:
            raise ValueError(
                f"Source {name!r}: {path} names no file. Check the path; files, folders and globs are read."
            )
        for file, size in files:
            if file not in seen:  # two patterns may name it
                pieces += _cut(file, size, source, max_bytes)
                seen.add(file)
    return pieces


def list_files(path: str) -> list[tuple[str, int]]:
    """The files that a path leads to, sorted, and their sizes; of a folder those with a known suffix.

    Args:
        path: A file, a folder, a glob, or a URL.

    Raises:
        ValueError: A folder cannot be listed.
    """
    if "://" in path:
        return sorted(_list_remote(path))
    if os.path.isdir(path):
        found = [file for file in _walk(path) if format_of(file)[0] is not None]
    else:
        found = [path] if os.path.lexists(path) else glob.glob(path, recursive=True)
        # a folder that is called a.jsonl is no file; the reader reports it
        found = [file for file in found if format_of(file)[0] is not None or not os.path.isdir(file)]
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
        if not is_folder or format_of(name)[0] is not None:
            yield system.unstrip_protocol(name), system.info(name)["size"]


def format_of(file: str) -> tuple[Format | None, str]:
    """Format and compression by the suffix; None where it says nothing.

    Args:
        file: Its name.
    """
    stem, suffix = os.path.splitext(file.lower())
    compression = _COMPRESSIONS.get(suffix, "")
    if compression:
        suffix = os.path.splitext(stem)[1]
        if suffix == ".json":
            suffix = ".jsonl"  # .json.gz is how C4 and others name their lines
    return _FORMATS.get(suffix), compression


def _cut(file: str, size: int, source: Source, max_bytes: int) -> list[Piece]:
    by_suffix, compression = format_of(file)
    file_format = source.format or by_suffix
    whole = [Piece(file, file_format, compression, 0, size, size)]
    if file_format not in _MAY_BE_CUT or compression or size <= max_bytes:
        return whole
    if file_format == "jsonl" and not is_ascii_compatible(source.encoding or "utf-8"):
        return whole
    try:
        if file_format == "parquet":
            return row_groups(file) or whole
        with closing(open_binary(file)) as stream:
            begins_array = stream.read(4096).lstrip()[:1] == b"["
    except (OSError, ValueError):
        return whole  # the reader says what is wrong with it
    if begins_array:
        return whole  # perhaps a JSON array, which has to be read from its beginning
    return stretches(file, file_format, size, max_bytes)
