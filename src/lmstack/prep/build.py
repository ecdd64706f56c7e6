"""Build a corpus: named sources in, token shards and a manifest out; it can be killed and goes on."""

import errno
import fcntl
import hashlib
import importlib.metadata
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from lmstack.data.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    SPLITS,
    TOKENIZER_FOLDER,
    Manifest,
    SourceSummary,
    Split,
    SplitSummary,
    TokenizerSummary,
    combine_hashes,
)
from lmstack.data.shard_format import ChunkInfo, token_dtype, write_index, write_json
from lmstack.prep.collect.cutting import file_state, packed
from lmstack.prep.overlap import refuse_overlap
from lmstack.prep.partition import WORK_FOLDER, Partition, Settings, build_partition, read_record
from lmstack.prep.pool import available_cores, process_pool
from lmstack.prep.progress import byte_progress
from lmstack.prep.readers import SourceConfig, list_pieces
from lmstack.tokenization.tokenizer import Tokenizer

Sources = Mapping[str, str | list[str] | SourceConfig]

DEFAULT_VALIDATION_FRACTION = 0.01
_PLAN_FILE = "plan.json"
_LOCK_FILE = "lock"
_SMALLEST_PARTITION = 1 << 20
_LARGEST_PARTITION = 1 << 26
_NUM_PARTITIONS = 64
_TORN_MANIFESTS = f"{MANIFEST_FILE}.*.tmp"
_OWN_ENTRIES = frozenset({WORK_FOLDER, MANIFEST_FILE, TOKENIZER_FOLDER, *SPLITS})


@dataclass(frozen=True)
class _Plan:
    """Everything that decides what the corpus will hold."""

    partitions: tuple[Partition, ...]
    paths: dict[str, tuple[str, ...]]
    inputs: str


def build_corpus(
    output: str | Path,
    sources: Sources,
    tokenizer: str | Path,
    *,
    validation_fraction: float | None = None,
    validation_sources: Sources | None = None,
    seed: int = 0,
    num_workers: int | None = None,
    overwrite: bool = False,
    chunk_bytes: int = 1 << 26,
) -> Manifest:
    """Tokenize sources into a corpus folder; the same inputs give the same bytes whatever the number of processes.

    A build that was killed goes on with the same call: finished partitions are kept. `manifest.json` is written last,
    so a folder that has it is whole; a call with the same inputs then returns at once.

    Args:
        output: Folder of the corpus.
        sources: Files, folders, globs or `SourceConfig` by source name.
        tokenizer: A `tokenizer.json`, or the folder that holds one. It is copied into the corpus.
        validation_fraction: Share of the documents of `sources` to hold out, by a hash of their split key. None is
            0.01, or 0 when `validation_sources` are given.
        validation_sources: Sources that are validation only, by name.
        seed: Another seed holds out other documents.
        num_workers: Processes; None is one for each core, 0 or 1 works in this process.
        overwrite: Replace a finished corpus that was built from other inputs.
        chunk_bytes: Size of a chunk file's tokens after which the next one begins.

    Raises:
        ValueError: An input is missing, unreadable or without documents, one side of the split is empty, a document is
            on both sides, `output` holds something else, or the disk is full.
    """
    output = Path(output)
    if validation_fraction is None:
        validation_fraction = 0.0 if validation_sources else DEFAULT_VALIDATION_FRACTION
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction={validation_fraction} is not in [0, 1). Use a share such as 0.01.")
    if not sources:
        raise ValueError("No sources are given. Name at least one, such as sources.web=texts/*.jsonl.")
    loaded = Tokenizer.load(tokenizer)
    plan = _make_plan(
        _configs(sources), _configs(validation_sources or {}), loaded, seed, validation_fraction, chunk_bytes
    )
    if (finished := _finished(output, plan, loaded, overwrite)) is not None:
        shutil.rmtree(output / WORK_FOLDER, ignore_errors=True)  # of a build that was killed as it took it away
        return finished
    settings = Settings(output, Path(tokenizer), loaded.fingerprint, seed, chunk_bytes)
    with disk_full_explained(output), locked(output):
        _prepare(output, plan)
        _run(settings, plan.partitions, num_workers)
        manifest = _finish(output, plan, loaded, seed, validation_fraction)
    shutil.rmtree(output / WORK_FOLDER)
    return manifest


def _configs(sources: Sources) -> dict[str, SourceConfig]:
    for name in sources:
        if not name or set(name) & set("/\\:") or name.startswith("."):
            raise ValueError(f"The source name {name!r} cannot name a folder. Use letters, digits, '-' and '_'.")
    return {
        name: source if isinstance(source, SourceConfig) else SourceConfig(source) for name, source in sources.items()
    }


def _make_plan(
    sources: dict[str, SourceConfig],
    validation_sources: dict[str, SourceConfig],
    tokenizer: Tokenizer,
    seed: int,
    validation_fraction: float,
    chunk_bytes: int,
) -> _Plan:
    groups = [(name, source, validation_fraction) for name, source in sources.items()]
    groups += [(name, source, 1.0) for name, source in validation_sources.items()]
    pieces = [list_pieces(name, source, _LARGEST_PARTITION) for name, source, _ in groups]
    total = sum(piece.size for group in pieces for piece in group)
    partition_bytes = min(max(total // _NUM_PARTITIONS, _SMALLEST_PARTITION), _LARGEST_PARTITION)
    partitions: list[Partition] = []
    for name, source, fraction in groups:
        for part in packed(list_pieces(name, source, partition_bytes), partition_bytes):
            partitions.append(Partition(len(partitions), name, source, part, fraction))
    identity = {
        "format_version": FORMAT_VERSION,
        "tokenizer": tokenizer.fingerprint,
        "seed": seed,
        "chunk_bytes": chunk_bytes,
        "partitions": [asdict(partition) for partition in partitions],
        "files": {piece.path: file_state(piece.path) for group in pieces for piece in group},
    }
    inputs = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    names = list(dict.fromkeys(name for name, _, _ in groups))
    paths = {name: tuple(p for n, s, _ in groups if n == name for p in _paths(s)) for name in names}
    return _Plan(tuple(partitions), paths, inputs)


def _paths(source: SourceConfig) -> list[str]:
    return [source.paths] if isinstance(source.paths, str) else source.paths


def _finished(output: Path, plan: _Plan, tokenizer: Tokenizer, overwrite: bool) -> Manifest | None:
    """The manifest of a corpus that is already built from these inputs; makes way when another is to be replaced."""
    if not (output / MANIFEST_FILE).exists():
        names = {entry.name for entry in output.iterdir()} if output.is_dir() else set()
        if strangers := sorted(name for name in names - _OWN_ENTRIES if not fnmatch(name, _TORN_MANIFESTS)):
            raise ValueError(f"{output} holds other things ({', '.join(strangers[:3])}). Name a new or empty folder.")
        return None
    if not overwrite or (manifest := _load_or_none(output)) is not None:
        manifest = Manifest.load(output)
        if manifest.inputs == plan.inputs:
            return manifest
        if not overwrite:
            what = "another tokenizer" if manifest.tokenizer.fingerprint != tokenizer.fingerprint else "other inputs"
            raise ValueError(
                f"{output} is a finished corpus built from {what} (its sources: {', '.join(manifest.sources)}). "
                "Give overwrite=true to replace it, or another output."
            )
    (output / MANIFEST_FILE).unlink()
    return None


def _load_or_none(output: Path) -> Manifest | None:
    try:
        return Manifest.load(output)
    except ValueError:
        return None


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """One build at a time in a folder; the lock goes with the process, however it ends.

    Args:
        output: The folder.

    Raises:
        ValueError: Another process is at work in it.
    """
    work = output / WORK_FOLDER
    work.mkdir(parents=True, exist_ok=True)
    with open(work / _LOCK_FILE, "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"Another process is building {output}. Wait for it, or stop it first.") from None
        yield


def _prepare(output: Path, plan: _Plan) -> None:
    """Keep the finished partitions of the same plan; clear everything else away."""
    work = output / WORK_FOLDER
    plan_file = work / _PLAN_FILE
    if not plan_file.exists() or json.loads(plan_file.read_text(encoding="utf-8")) != plan.inputs:
        plan_file.unlink(missing_ok=True)
        for record in work.glob("partition-*"):
            record.unlink()
        for folder in (*SPLITS, TOKENIZER_FOLDER):
            shutil.rmtree(output / folder, ignore_errors=True)
        write_json(plan_file, plan.inputs)
    records = [read_record(output, partition.index) for partition in plan.partitions]
    kept = {chunk["filename"] for record in records if record for split in SPLITS for chunk in record[split]["chunks"]}
    for split in SPLITS:
        for file in (output / split).glob("*/*"):
            if file.name not in kept:
                file.unlink()
    for file in [*work.glob("*.tmp"), *output.glob(_TORN_MANIFESTS)]:
        file.unlink()


def _run(settings: Settings, partitions: Sequence[Partition], num_workers: int | None) -> None:
    todo = [partition for partition in partitions if read_record(settings.output, partition.index) is None]
    workers = min(available_cores() if num_workers is None else num_workers, len(todo))
    done = sum(p.size for p in partitions) - sum(p.size for p in todo)
    with byte_progress("tokenizing", sum(p.size for p in partitions), done) as advance, process_pool(workers) as run:
        for size in run(partial(build_partition, settings), todo):
            advance(size)


def _finish(output: Path, plan: _Plan, tokenizer: Tokenizer, seed: int, validation_fraction: float) -> Manifest:
    records = [(p.source_name, read_record(output, p.index) or {}) for p in plan.partitions]
    dtype = token_dtype(tokenizer.vocab_size)
    sources = {}
    for name, paths in plan.paths.items():
        own = [record for source_name, record in records if source_name == name]
        if not any(record[split]["documents"] for record in own for split in SPLITS):
            raise ValueError(f"Source {name!r} ({', '.join(paths)}) holds no documents. Check its paths and fields.")
        train, validation = (_finish_split(output / split / name, split, own, dtype) for split in SPLITS)
        sources[name] = SourceSummary(paths, train, validation)
    manifest = Manifest(
        tokenizer=TokenizerSummary(tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.eot_id),
        sources=sources,
        seed=seed,
        validation_fraction=validation_fraction,
        token_dtype=dtype.name,
        inputs=plan.inputs,
        created_with={
            "lmstack": importlib.metadata.version("lmstack"),
            "tokenizers": importlib.metadata.version("tokenizers"),
            "python": sys.version.split()[0],
        },
    )
    _refuse_empty_side(manifest, plan)
    refuse_overlap(output, plan.partitions, tokenizer)
    tokenizer.save(output / TOKENIZER_FOLDER)
    manifest.save(output)
    return manifest


def _finish_split(folder: Path, split: Split, records: list[dict[str, Any]], dtype: Any) -> SplitSummary:
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [chunk for record in records for chunk in record[split]["chunks"]]
    fields = ("filename", "num_documents", "num_tokens", "num_bytes")
    write_index(folder, [ChunkInfo(*(chunk[field] for field in fields)) for chunk in chunks], dtype)
    documents, tokens, num_bytes = (
        sum(record[split][field] for record in records) for field in ("documents", "tokens", "bytes")
    )
    return SplitSummary(documents, tokens, num_bytes, combine_hashes([chunk["sha256"] for chunk in chunks]))


def _refuse_empty_side(manifest: Manifest, plan: _Plan) -> None:
    wants_validation = any(partition.validation_fraction > 0 for partition in plan.partitions)
    empty = [split for split in SPLITS if not manifest.total(split).documents]
    if "train" in empty or (empty and wants_validation):
        documents = sum(manifest.total(split).documents for split in SPLITS)
        raise ValueError(
            f"The {empty[0]} side is empty: validation_fraction={manifest.validation_fraction} of {documents} "
            f"documents with seed={manifest.seed}. Change the fraction or the seed, cut the text into more "
            "documents with `separator`, or name validation_sources."
        )


@contextmanager
def disk_full_explained(output: Path) -> Iterator[None]:
    """Say what to do when the disk takes no more.

    Args:
        output: Folder that is written to.

    Raises:
        ValueError: It does not.
    """
    try:
        yield
    except OSError as error:
        is_cut_short = error.errno is None and re.search(r"requested and \d+ written", str(error))  # numpy's way
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and not is_cut_short:
            raise
        raise ValueError(
            f"The disk of {output} is full ({error.strerror or error}). Free some space and run the same command "
            "again: what is finished is kept."
        ) from error
