"""Documents from files: text, JSONL (also as .gz and .zst) and Parquet, in folders and globs."""

import codecs
import glob
import gzip
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from lmstack.prep import stdlib_corpus
from lmstack.prep.parts import BLOCK_BYTES, ByteStream, parts, split

Kind = Literal["text", "jsonl", "jsonl.gz", "jsonl.zst", "parquet", "python"]

_KIND_OF_SUFFIX: dict[str, Kind] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
    ".py": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonl.gz": "jsonl.gz",
    ".json.gz": "jsonl.gz",
    ".jsonl.zst": "jsonl.zst",
    ".parquet": "parquet",
}


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


@dataclass(frozen=True)
class Piece:
    """A stretch of a source that one process reads at a time.

    Attributes:
        kind: Format of the file.
        path: The file; the pseudo path for the texts of this Python.
        start: First byte, first row group of Parquet, or first module: a piece holds what begins in it.
        stop: One past the last.
        size: Bytes to read, for the progress bar.
    """

    kind: Kind
    path: str
    start: int
    stop: int
    size: int


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
            sizes = stdlib_corpus.sizes(path)
            pieces += [Piece("python", path, i, i + 1, size) for i, size in enumerate(sizes)]
        else:
            for file, kind in _list_files(name, path):
                pieces += _cut(file, kind, source, max_bytes)
    if not pieces:
        raise ValueError(f"Source {name!r} names no paths. Give it at least one file, folder or glob.")
    return pieces


def read_piece(piece: Piece, source: SourceConfig) -> Iterator[Document]:
    """The documents that begin in a piece; empty texts are yielded too, so that they can be counted.

    Args:
        piece: What to read.
        source: How to read it.
    """
    if piece.kind == "python":
        for text, key in stdlib_corpus.documents(piece.path, piece.start, piece.stop):
            yield Document(text, key)
        return
    try:
        yield from _READERS[piece.kind](piece, source)
    except (OSError, EOFError) as error:
        raise ValueError(f"{piece.path} cannot be read: {error}. Repair the file or leave it out.") from error


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


def _list_files(name: str, path: str) -> list[tuple[str, Kind]]:
    if os.path.isdir(path):
        found = [os.path.join(folder, file) for folder, _, files in os.walk(path) for file in files]
        files = sorted(file for file in found if _kind(file) is not None)
        reason = f"holds no file that ends in {', '.join(_KIND_OF_SUFFIX)}"
    elif glob.has_magic(path) and not os.path.exists(path):
        files = sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
        reason = "matches no file"
    else:
        files = [path] if os.path.isfile(path) else []
        reason = "does not exist"
    if not files:
        raise ValueError(f"Source {name!r}: {path} {reason}. Check the path; folders, files and globs are read.")
    for file in files:
        if _kind(file) is None and file.lower().endswith(_UNREADABLE_SUFFIXES):
            raise ValueError(f"Source {name!r}: {file} is neither text, JSONL, JSONL.gz nor Parquet. Convert it first.")
    return [(file, _kind(file) or "text") for file in files]


def _kind(file: str) -> Kind | None:
    lower = file.lower()
    return next((kind for suffix, kind in _KIND_OF_SUFFIX.items() if lower.endswith(suffix)), None)


def _cut(file: str, kind: Kind, source: SourceConfig, max_bytes: int) -> list[Piece]:
    try:
        size = os.path.getsize(file)
        if kind == "parquet":
            groups = _open_parquet(file).metadata
            sizes = [groups.row_group(i).total_byte_size for i in range(groups.num_row_groups)]
            return [Piece(kind, file, i, i + 1, group) for i, group in enumerate(sizes)]
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error}. Repair the file or leave it out.") from error
    separator = "\n" if kind == "jsonl" else source.separator if kind == "text" else None
    if separator is None or _overlaps_itself(separator) or not _is_ascii_compatible(source.encoding):
        return [Piece(kind, file, 0, size, size)]
    starts = range(0, max(size, 1), max_bytes)
    return [Piece(kind, file, i, min(i + max_bytes, size), min(max_bytes, size - i)) for i in starts]


def _is_ascii_compatible(encoding: str) -> bool:
    """Whether a separator's bytes cannot begin inside another character, so that a file can be cut anywhere."""
    return codecs.lookup(encoding).name in ("utf-8", "ascii", "iso8859-1", "cp1252")


def _read_text(piece: Piece, source: SourceConfig) -> Iterator[Document]:
    if source.separator is None:
        yield _document(_decode(Path(piece.path).read_bytes(), piece.path, 0, source), piece.path)
    elif not _is_ascii_compatible(source.encoding):
        content = _decode(Path(piece.path).read_bytes(), piece.path, 0, source)
        for text in content.split(source.separator):
            yield _document(text, piece.path)
    else:
        for offset, part in _parts(piece, source.separator.encode(source.encoding)):
            yield _document(_decode(part, piece.path, offset, source), piece.path)


def _read_jsonl(piece: Piece, source: SourceConfig) -> Iterator[Document]:
    if _is_ascii_compatible(source.encoding):
        for offset, line in _parts(piece, b"\n"):
            if line.strip():
                where = _LinePosition(piece.path, offset)
                yield _parse(_decode(line, piece.path, offset, source), where, source)
    else:
        content = _decode(Path(piece.path).read_bytes(), piece.path, 0, source)
        for number, text in enumerate(content.split("\n"), 1):
            if text.strip():
                yield _parse(text, f"{piece.path}, line {number}", source)


def _read_compressed(piece: Piece, source: SourceConfig) -> Iterator[Document]:
    with closing(_open_compressed(piece)) as stream:
        for number, (offset, line) in enumerate(split(stream, 0, b"\n"), 1):
            if line.strip():
                text = _decode(line, piece.path, offset, source)
                yield _parse(text, f"{piece.path}, line {number}", source)


def _open_compressed(piece: Piece) -> ByteStream:
    if piece.kind == "jsonl.gz":
        return cast(ByteStream, gzip.open(piece.path, "rb"))
    try:
        import zstandard
    except ModuleNotFoundError:
        raise ValueError(f"{piece.path} is compressed with zstandard: pip install 'lmstack[prep]'.") from None
    return cast(ByteStream, zstandard.open(piece.path, "rb"))


def _read_parquet(piece: Piece, source: SourceConfig) -> Iterator[Document]:
    file = _open_parquet(piece.path)
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


def _open_parquet(file: str) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ModuleNotFoundError:
        raise ValueError(f"{file} is Parquet, which needs pyarrow: pip install 'lmstack[prep]'.") from None
    try:
        return parquet.ParquetFile(file)
    except ValueError as error:  # ArrowInvalid
        raise ValueError(f"{file} is not a Parquet file: {error}. Repair the file or leave it out.") from error


_READERS = {"text": _read_text, "jsonl": _read_jsonl, "jsonl.gz": _read_compressed, "parquet": _read_parquet}
_READERS["jsonl.zst"] = _read_compressed


@dataclass(frozen=True)
class _LinePosition:
    """Where a line is; its number is counted only when an error message asks for it."""

    path: str
    offset: int

    def __str__(self) -> str:
        with open(self.path, "rb") as stream:
            number = 1 + sum(block.count(b"\n") for block in _blocks(stream, self.offset))
        return f"{self.path}, line {number}"


def _blocks(stream: IO[bytes], size: int) -> Iterator[bytes]:
    while size > 0 and (block := stream.read(min(size, BLOCK_BYTES))):
        size -= len(block)
        yield block


def _parts(piece: Piece, separator: bytes) -> Iterator[tuple[int, bytes]]:
    with open(piece.path, "rb") as stream:
        yield from parts(stream, piece.start, piece.stop, separator)


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
