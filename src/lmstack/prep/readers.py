"""Documents as they stand, for tokens: every character is kept, and the first flaw stops the run with its line.

Files are opened, uncompressed and cut by `collect`; what becomes of the content differs, for `collect` mends, skips
and counts what it meets, and `data build` is told that its sources are sound.
"""

import codecs
import glob
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from lmstack.prep import stdlib_corpus
from lmstack.prep.collect.cutting import Piece, python_pieces, row_groups, stretches
from lmstack.prep.collect.encoding import is_ascii_compatible
from lmstack.prep.collect.opening import opened, separated
from lmstack.prep.collect.source import format_of, list_files
from lmstack.prep.parts import BLOCK_BYTES

_SUFFIXES = (
    ".txt", ".text", ".md", ".rst", ".py", ".jsonl", ".ndjson", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".parquet",
)  # fmt: skip
_UNREADABLE_SUFFIXES = (".json", ".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".arrow", ".bin")


@dataclass(frozen=True)
class Document:
    """A text and the key that decides which side of the split it falls on.

    Attributes:
        text: The text, not empty.
        key: Documents with the same key stay together. Unless the source says otherwise it is a hash of the text, so
            that copies of a document never fall on both sides.
    """

    text: str
    key: str


@dataclass(frozen=True)
class SourceConfig:
    """How to read one source.

    Attributes:
        paths: Files, folders (read with everything in them) and globs; `python:reference`, `python:docstrings` and
            `python:source` are the texts that this Python carries.
        separator: What stands between documents in text files; None makes each file one document.
        text_field: The field of a JSONL record or the column of a Parquet file that holds the text. Dots lead into
            objects: `metadata.title`.
        key_field: Field or column, also with dots, whose equal values keep documents on one side of the split, such as
            a site or an author; None splits document by document.
        encoding: How text files and JSONL are encoded.
        errors: What to do with bytes that are not so encoded: `strict` refuses them, `replace` puts U+FFFD.
    """

    paths: str | list[str]
    separator: str | None = None
    text_field: str = "text"
    key_field: str | None = None
    encoding: str = "utf-8"
    errors: Literal["strict", "replace"] = "strict"

    def __post_init__(self) -> None:
        if self.separator == "":
            raise ValueError("separator is empty. Name the text between documents, or null for one document a file.")
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ValueError(f"encoding={self.encoding!r} is not known to Python. Use one such as latin-1.") from None


def list_pieces(name: str, source: SourceConfig, max_bytes: int) -> list[Piece]:
    """Every stretch of a source, in an order that depends on the names of its files only.

    Args:
        name: Name of the source, for error messages.
        source: What to list.
        max_bytes: Files that can be cut are cut to pieces of about this size.
    """
    pieces: list[Piece] = []
    for path in [source.paths] if isinstance(source.paths, str) else source.paths:
        if path.startswith("python:"):
            pieces += python_pieces(path)
        else:
            for file, size in _list_files(name, path):
                pieces += _cut(file, size, source, max_bytes)
    if not pieces:
        raise ValueError(f"Source {name!r} names no paths. Give it at least one file, folder or glob.")
    return pieces


def read_piece(piece: Piece, source: SourceConfig) -> Iterator[Document]:
    """The documents that begin in a piece; empty texts are yielded too, so that they can be counted.

    Args:
        piece: What to read.
        source: How to read it.
    """
    if piece.format == "python":
        for text, key in stdlib_corpus.documents(piece.path, piece.start, piece.stop):
            yield Document(text, key)
        return
    read = {"jsonl": _read_jsonl, "parquet": _read_parquet}.get(piece.format or "text", _read_text)
    with _explained(piece.path):
        yield from read(piece, source)


def read_source(name: str, source: SourceConfig, max_bytes: int = 1 << 24) -> Iterator[Document]:
    """All documents of a source that are not empty, in order.

    Args:
        name: Name of the source, for error messages.
        source: What to read.
        max_bytes: As in `list_pieces`.
    """
    for piece in list_pieces(name, source, max_bytes):
        for document in read_piece(piece, source):
            if document.text:
                yield document


def _list_files(name: str, path: str) -> list[tuple[str, int]]:
    files = [] if "://" in path else [(file, size) for file, size in list_files(path) if os.path.isfile(file)]
    if os.path.isdir(path):
        files = [(file, size) for file, size in files if file.lower().endswith(_SUFFIXES)]
        reason = f"holds no file that ends in {', '.join(_SUFFIXES)}"
    else:
        reason = "matches no file" if glob.has_magic(path) and not os.path.exists(path) else "does not exist"
    if not files:
        raise ValueError(f"Source {name!r}: {path} {reason}. Check the path; folders, files and globs are read.")
    for file, _ in files:
        if not file.lower().endswith(_SUFFIXES) and file.lower().endswith(_UNREADABLE_SUFFIXES):
            raise ValueError(f"Source {name!r}: {file} is neither text, JSONL, JSONL.gz nor Parquet. Convert it first.")
    return files


def _cut(file: str, size: int, source: SourceConfig, max_bytes: int) -> list[Piece]:
    known, compression = format_of(file)
    if known == "parquet":
        with _explained(file):
            return row_groups(file)
    separator = "\n" if known == "jsonl" else source.separator
    if compression or separator is None or _overlaps_itself(separator) or not is_ascii_compatible(source.encoding):
        return [Piece(file, known, compression, 0, size, size)]
    return stretches(file, known, size, max_bytes)


@contextmanager
def _explained(file: str) -> Iterator[None]:
    """Errors of libraries with the file and what to do."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"{file} needs {error.name} to be read: pip install 'lmstack[prep]'.") from None
    except (OSError, EOFError) as error:
        raise ValueError(f"{file} cannot be read: {error}. Repair the file or leave it out.") from error


def _read_text(piece: Piece, source: SourceConfig) -> Iterator[Document]:
    if source.separator is None:
        yield _document(_whole(piece, source), piece.path)
        return
    for _, text in _parts(piece, source, source.separator):
        yield _document(text, piece.path)


def _read_jsonl(piece: Piece, source: SourceConfig) -> Iterator[Document]:
    for where, line in _parts(piece, source, "\n"):
        if line.strip():
            yield _parse(line, where, source)


def _parts(piece: Piece, source: SourceConfig, separator: str) -> Iterator[tuple[object, str]]:
    """What stands between separators, with where it is."""
    if not is_ascii_compatible(source.encoding):
        for number, text in enumerate(_whole(piece, source).split(separator), 1):
            yield f"{piece.path}, line {number}", text
        return
    for offset, part in separated(piece, separator, source.encoding):
        if not isinstance(part, bytes):
            raise OSError(f"{part.reason} {part.detail}")
        yield _LinePosition(piece, offset), _decode(part, piece.path, offset, source)


def _whole(piece: Piece, source: SourceConfig) -> str:
    with closing(opened(piece)) as stream:
        return _decode(stream.read(), piece.path, 0, source)


def _read_parquet(piece: Piece, source: SourceConfig) -> Iterator[Document]:
    import pyarrow.parquet as parquet

    file = parquet.ParquetFile(piece.path)
    columns = [source.text_field] + ([source.key_field] if source.key_field else [])
    missing = [column for column in columns if column not in file.schema_arrow.names]
    if missing:
        raise ValueError(
            f"{piece.path} has no column {missing[0]!r}; it has {file.schema_arrow.names}. "
            "Name one with `text_field` (or `key_field`)."
        )
    row = sum(file.metadata.row_group(i).num_rows for i in range(piece.start))
    for batch in file.iter_batches(batch_size=1024, row_groups=list(range(piece.start, piece.stop)), columns=columns):
        for record in batch.to_pylist():
            yield _from_record(record, f"{piece.path}, row {row}", source)
            row += 1


@dataclass(frozen=True)
class _LinePosition:
    """Where a line is; its number is counted only when an error message asks for it."""

    piece: Piece
    offset: int

    def __str__(self) -> str:
        number, left = 1, self.offset
        with closing(opened(self.piece)) as stream:
            while left > 0 and (block := stream.read(min(left, BLOCK_BYTES))):
                number += block.count(b"\n")
                left -= len(block)
        return f"{self.piece.path}, line {number}"


def _overlaps_itself(separator: str) -> bool:
    return any(separator.startswith(separator[i:]) for i in range(1, len(separator)))


def _decode(content: bytes, path: str, offset: int, source: SourceConfig) -> str:
    try:
        return content.decode(source.encoding, source.errors)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not {source.encoding}: byte 0x{content[error.start]:02x} at offset {offset + error.start} "
            f"({error.reason}). Name its encoding with `encoding` (such as latin-1), or accept U+FFFD in its place "
            "with `errors: replace`."
        ) from None


def _parse(line: str, where: object, source: SourceConfig) -> Document:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}. Repair the line or leave the file out.") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where} holds a {type(record).__name__}; a JSONL line is an object with fields.")
    return _from_record(record, where, source)


def _from_record(record: dict[str, Any], where: object, source: SourceConfig) -> Document:
    for option, field in (("text_field", source.text_field), ("key_field", source.key_field)):
        if field is not None and _MISSING is _lookup(record, field):
            raise ValueError(f"{where} has no field {field!r}; it has {sorted(record)}. Name one with `{option}`.")
    text = _lookup(record, source.text_field)
    if not isinstance(text, str):
        raise ValueError(
            f"{where}: the field {source.text_field!r} holds {text!r:.60}, not a string. "
            "Repair the record, or name another field with `text_field`."
        )
    key = None if source.key_field is None else f"{source.key_field}={_lookup(record, source.key_field)}"
    return _document(text, where, key)


_MISSING = object()


def _lookup(record: dict[str, Any], field: str) -> Any:
    """The value of a field, `_MISSING` when there is none; a name that has dots itself comes first."""
    if field in record:
        return record[field]
    first, _, rest = field.partition(".")
    inner = record.get(first)
    return _lookup(inner, rest) if rest and isinstance(inner, dict) else _MISSING


def _document(text: str, where: object, key: str | None = None) -> Document:
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: the text holds half a surrogate pair, U+{ord(text[error.start]):04X}, which is not a character. "
            "Repair the record."
        ) from None
    return Document(text, hashlib.blake2b(content, digest_size=16).hexdigest() if key is None else key)
