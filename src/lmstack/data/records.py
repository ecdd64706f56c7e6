"""Records of JSONL, JSON and Parquet files, each with the place it came from."""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")


class Record(NamedTuple):
    """One row of a file.

    Attributes:
        values: Its fields.
        where: File and line (or row), for messages.
    """

    values: dict[str, Any]
    where: str


def read_records(paths: str | Sequence[str], left_out: Counter[str] | None = None) -> list[Record]:
    """All records of some files, in the order of their names and rows.

    A file of text holds one object a line, or a list of objects, whatever its name says.

    Args:
        paths: Files, folders or globs.
        left_out: Counts rows that are not objects, by reason; None raises at the first.

    Raises:
        ValueError: A path leads to nothing, a file has another format, or a row is not an object; file and line are
            named.
    """
    records = []
    for file in _files(paths):
        for values, where in _rows(file):
            try:
                records.append(Record(_object(values), where))
            except ValueError as error:
                if left_out is None:
                    raise ValueError(f"{where}: {error} Mend the row, or set data.on_bad_row=drop.") from error
                left_out[str(error).partition(" (")[0].rstrip(".")] += 1
    if not records and not left_out:
        raise ValueError(f"{paths}: no records. Name files that hold at least one.")
    return records


def _files(paths: str | Sequence[str]) -> list[Path]:
    files: list[Path] = []
    for path in [paths] if isinstance(paths, str) else paths:
        found = [Path(path)] if Path(path).exists() else [Path(match) for match in sorted(glob(path, recursive=True))]
        if not found:
            raise ValueError(
                f"{path}: there is no such file. Check the path; relative ones start at the working folder."
            )
        for one in found:
            inside = sorted(p for p in one.rglob("*") if p.name.endswith(_SUFFIXES)) if one.is_dir() else [one]
            files += inside
    for file in files:
        if not file.name.endswith(_SUFFIXES):
            raise ValueError(f"{file}: not one of {', '.join(_SUFFIXES)}. Convert it, or name another file.")
    return files


def _rows(file: Path) -> Iterator[tuple[Any, str]]:
    """Each row, or why it is none, and where it stands."""
    if file.suffix == ".parquet":
        for number, values in enumerate(_parquet(file), start=1):
            yield values, f"{file}, row {number}"
        return
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read as UTF-8 text ({error}).") from error
    if text.lstrip()[:1] == "[":
        for number, values in enumerate(_list(file, text), start=1):
            yield values, f"{file}, item {number}"
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _parsed(line), f"{file}, line {number}"


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        return error


def _list(file: Path, text: str) -> list[Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file}: begins with [ and is no JSON list ({error}). Mend the file.") from error
    assert isinstance(values, list)
    return values


def _parquet(file: Path) -> list[Any]:
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError:
        raise ValueError(f'{file}: reading Parquet needs pyarrow: pip install "lmstack[prep]".') from None
    try:
        rows: list[Any] = parquet.read_table(file).to_pylist()
    except (OSError, ArrowException) as error:
        raise ValueError(f"{file}: cannot be read as Parquet ({error}).") from error
    return rows


def _object(values: Any) -> dict[str, Any]:
    if isinstance(values, ValueError):
        raise ValueError(f"not JSON ({values}); a file holds an object a line, or a list of objects.") from values
    if not isinstance(values, dict):
        raise ValueError(f"expected an object with fields, got {type(values).__name__}.")
    return values
