"""Records of JSONL, JSON and Parquet files, each with the place it came from."""

import gzip
import json
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


def read_records(paths: str | Sequence[str]) -> list[Record]:
    """All records of some files, in the order of their names and rows.

    A `.json` file holds a list of objects; so may a `.jsonl`, which is then read as what it is.

    Args:
        paths: Files, folders or globs.

    Raises:
        ValueError: A path leads to nothing, a file has another format, or a row is not an object; file and line are
            named.
    """
    records = [record for file in _files(paths) for record in _read(file)]
    if not records:
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


def _read(file: Path) -> Iterator[Record]:
    if file.suffix == ".parquet":
        yield from _read_parquet(file)
        return
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read as UTF-8 text ({error}).") from error
    if text.lstrip()[:1] == "[":
        yield from _read_list(file, text)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _record(_parse(line, f"{file}, line {number}"), f"{file}, line {number}")


def _read_list(file: Path, text: str) -> Iterator[Record]:
    for number, values in enumerate(_parse(text, str(file)), start=1):
        yield _record(values, f"{file}, item {number}")


def _read_parquet(file: Path) -> Iterator[Record]:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ValueError(f'{file}: reading Parquet needs pyarrow: pip install "lmstack[parquet]".') from None
    for number, values in enumerate(parquet.read_table(file).to_pylist(), start=1):
        yield _record(values, f"{file}, row {number}")


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error}).") from error


def _record(values: Any, where: str) -> Record:
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected an object with fields, got {type(values).__name__}.")
    return Record(values, where)
