"""The texts of evaluation sets: files with named fields, and the tasks of lm-eval over local files."""

import bz2
import csv
import glob
import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import jinja2
import jinja2.meta
import yaml  # type: ignore[import-untyped]

_OPENERS: dict[str, Callable[..., IO[Any]]] = {".gz": gzip.open, ".bz2": bz2.open}
_TASK_SUFFIXES = (".yaml", ".yml")
_TEMPLATES = ("doc_to_text", "doc_to_target")


@dataclass(frozen=True)
class EvaluationSet:
    """Where the items of a benchmark are.

    Attributes:
        paths: Files and globs: JSONL, JSON, CSV, TSV (also .gz and .bz2), Parquet, or lm-eval task files (.yaml), whose
            data files must be local.
        fields: Names of the fields to look for, each by itself: those that must not be seen in training, such as the
            question and the worked solution. Columns of a table without header are named by number, from 0. Of a task,
            none means those that its `doc_to_text` and `doc_to_target` name.
        has_header: Whether CSV and TSV begin with the names of the columns.
    """

    paths: str | list[str]
    fields: list[str] = field(default_factory=list)
    has_header: bool = True


@dataclass(frozen=True)
class Item:
    """One item of a benchmark.

    Attributes:
        name: File and number, such as `test.jsonl:12`.
        texts: Of its fields, each to be found by itself.
    """

    name: str
    texts: tuple[str, ...]


def read_items(evaluation_set: EvaluationSet) -> Iterator[Item]:
    """Read the items.

    Args:
        evaluation_set: Where they are.

    Raises:
        ValueError: A path matches nothing, a format or a field is not known, or no fields are named.
    """
    for file in _named_files(evaluation_set):
        if file.suffix in _TASK_SUFFIXES:
            task, _ = _read_task(file)
            fields = evaluation_set.fields or _task_fields(task, file)
            for data_file in _task_files(task, file):
                yield from _items(data_file, fields, has_header=True)
        elif evaluation_set.fields:
            yield from _items(file, evaluation_set.fields, evaluation_set.has_header)
        else:
            raise ValueError(f"No fields are named for {file}. Name those to look for, such as fields=[question].")


def evaluation_files(evaluation_set: EvaluationSet) -> Iterator[Path]:
    """Every file that decides what the items are: data, tasks, and what tasks include.

    Args:
        evaluation_set: Where the items are.

    Raises:
        ValueError: A path matches nothing, or a task's data is not local.
    """
    for file in _named_files(evaluation_set):
        if file.suffix in _TASK_SUFFIXES:
            task, task_files = _read_task(file)
            yield from task_files
            yield from _task_files(task, file)
        else:
            yield file


def _named_files(evaluation_set: EvaluationSet) -> Iterator[Path]:
    for pattern in [evaluation_set.paths] if isinstance(evaluation_set.paths, str) else evaluation_set.paths:
        files = sorted(glob.glob(pattern, recursive=True))
        if not files:
            raise ValueError(f"{pattern} matches no file. Name the files of the evaluation set.")
        yield from map(Path, files)


def _items(file: Path, fields: Sequence[str], has_header: bool) -> Iterator[Item]:
    for number, record in enumerate(_records(file, has_header)):
        texts = []
        for name in fields:
            if name not in record:
                known = ", ".join(map(str, record))
                raise ValueError(f"Record {number} of {file} has no field {name!r}. It has: {known}.")
            texts += list(_strings(record[name]))
        yield Item(f"{file.name}:{number}", tuple(text for text in texts if text.strip()))


def _strings(value: Any) -> Iterator[str]:
    """The texts in a field, which may be a list of choices or a record of them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, Sequence):
        for each in value:
            yield from _strings(each)


def _records(file: Path, has_header: bool) -> Iterator[Mapping[str, Any]]:
    kind = (file.with_suffix("") if file.suffix in _OPENERS else file).suffix
    if kind == ".parquet":
        yield from _parquet_records(file)
        return
    if kind not in (".jsonl", ".json", ".csv", ".tsv"):
        raise ValueError(f"{file} is no evaluation set that can be read. Use JSONL, JSON, CSV, TSV, Parquet or YAML.")
    with _OPENERS.get(file.suffix, open)(file, "rt", encoding="utf-8-sig", newline="") as stream:
        if kind in (".csv", ".tsv"):
            rows = csv.reader(stream, delimiter="," if kind == ".csv" else "\t")
            header = next(rows, []) if has_header else None
            for row in rows:
                yield dict(zip(header or map(str, range(len(row))), row, strict=False))
        elif kind == ".json" or stream.read(1) == "[":  # an array, also where its name says lines
            stream.seek(0)
            records = json.load(stream)
            yield from records if isinstance(records, list) else [records]
        else:
            stream.seek(0)
            yield from (json.loads(line) for line in stream if line.strip())


def _parquet_records(file: Path) -> Iterator[Mapping[str, Any]]:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ValueError(f"{file} needs pyarrow to be read. Install it with: pip install 'lmstack[prep]'.") from None
    for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
        yield from batch.to_pylist()


class _TaskLoader(yaml.SafeLoader):
    """YAML of lm-eval: what it calls from Python files is kept as text."""


_TaskLoader.add_constructor("!function", lambda _, node: f"!function {node.value}")


def _read_task(file: Path) -> tuple[dict[str, Any], list[Path]]:
    """A task with what it includes, and all files that this is written in."""
    with open(file, encoding="utf-8") as stream:
        task: dict[str, Any] = yaml.load(stream, _TaskLoader)  # a SafeLoader
    included = task.pop("include", None)
    if not included:
        return task, [file]
    inherited, files = _read_task(file.parent / included)
    return {**inherited, **task}, [file, *files]


def _task_files(task: Mapping[str, Any], file: Path) -> Iterator[Path]:
    """The local data files of a task's evaluation split."""
    data_files = (task.get("dataset_kwargs") or {}).get("data_files")
    split = task.get("test_split") or task.get("validation_split")
    if isinstance(data_files, Mapping):
        if split not in data_files:
            raise ValueError(f"{file} tests on split {split!r}, of which it has no data_files. Name one of its own.")
        data_files = data_files[split]
    if not data_files:
        raise ValueError(
            f"{file} reads dataset_path={task.get('dataset_path')!r}, which is not local. Download it, and name its "
            "files in dataset_kwargs.data_files or as paths."
        )
    for name in [data_files] if isinstance(data_files, str) else data_files:
        yield Path(name) if Path(name).exists() else file.parent / name


def _task_fields(task: Mapping[str, Any], file: Path) -> list[str]:
    """The fields that a task puts before the model, whether it names them or has templates with them."""
    fields: dict[str, None] = {}
    for key in _TEMPLATES:
        template = task.get(key)
        if not isinstance(template, str):
            continue
        if template.startswith("!function"):
            raise ValueError(f"{file} computes {key} by {template}. Name the fields to look for, fields=[...].")
        variables = sorted(jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(template)))
        fields |= dict.fromkeys(variables if "{" in template else [template])
    if not fields:
        raise ValueError(f"{file} names no fields in {' or '.join(_TEMPLATES)}. Name them, fields=[...].")
    return list(fields)
