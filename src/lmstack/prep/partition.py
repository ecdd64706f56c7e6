"""The work of one process: read a stretch of a source, tokenize it, write its chunk files."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lmstack.data.manifest import SPLITS, Split
from lmstack.data.shard_format import token_dtype, write_chunk, write_json
from lmstack.prep.collect.cutting import Piece
from lmstack.prep.readers import Document, SourceConfig, read_piece
from lmstack.prep.split import is_validation
from lmstack.tokenization.tokenizer import Tokenizer

WORK_FOLDER = ".build"
_BATCH_CHARACTERS = 1 << 19


@dataclass(frozen=True)
class Partition:
    """Some pieces of a source, done or not done as a whole.

    Attributes:
        index: Its place in the corpus.
        source_name: Which source.
        source: How to read it.
        pieces: What to read.
        validation_fraction: Share of its keys that is held out; 1 for sources that are validation only.
    """

    index: int
    source_name: str
    source: SourceConfig
    pieces: tuple[Piece, ...]
    validation_fraction: float

    @property
    def size(self) -> int:
        """Bytes to read."""
        return sum(piece.size for piece in self.pieces)


@dataclass(frozen=True)
class Settings:
    """What all partitions share.

    Attributes:
        output: Folder of the corpus.
        tokenizer: Where the tokenizer is.
        fingerprint: Of the tokenizer, so that a process does not use one that was there before.
        seed: Of the split.
        chunk_bytes: Tokens of a chunk file, in bytes, after which the next one begins.
    """

    output: Path
    tokenizer: Path
    fingerprint: str
    seed: int
    chunk_bytes: int


@dataclass
class _Side:
    """What was written to one side of the split."""

    chunks: list[dict[str, Any]] = field(default_factory=list)
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    digests: list[int] = field(default_factory=list)
    pending: list[np.ndarray] = field(default_factory=list)
    pending_bytes: int = 0


def record_file(output: Path, index: int) -> Path:
    """Where a finished partition is recorded.

    Args:
        output: Folder of the corpus.
        index: Index of the partition.
    """
    return output / WORK_FOLDER / f"partition-{index:06d}.json"


def digests_file(output: Path, index: int, split: Split) -> Path:
    """Where the content hashes of a partition's documents are.

    Args:
        output: Folder of the corpus.
        index: Index of the partition.
        split: Which side.
    """
    return output / WORK_FOLDER / f"partition-{index:06d}.{split}.digests"


def build_partition(settings: Settings, partition: Partition) -> int:
    """Write the chunk files of a partition, and then its record: with the record it is finished.

    Args:
        settings: What all partitions share.
        partition: What to read.

    Returns:
        Bytes read, for the progress bar.
    """
    tokenizer = _load_tokenizer(settings.tokenizer, settings.fingerprint)
    sides = {split: _Side() for split in SPLITS}
    num_empty = 0
    for batch in _batches(partition):
        texts = [document for document in batch if document.text]
        num_empty += len(batch) - len(texts)
        for document, tokens in zip(texts, _encode(tokenizer, texts), strict=True):
            held_out = is_validation(document.key, settings.seed, partition.validation_fraction)
            split: Split = "validation" if held_out else "train"
            _add(sides[split], document, tokens)
            if sides[split].pending_bytes >= settings.chunk_bytes:
                _flush(sides[split], settings, partition, split)
    for split, side in sides.items():
        _flush(side, settings, partition, split)
        np.array(side.digests, dtype=np.uint64).tofile(digests_file(settings.output, partition.index, split))
    summaries = {
        split: {"chunks": side.chunks, "documents": side.documents, "tokens": side.tokens, "bytes": side.bytes}
        for split, side in sides.items()
    }
    write_json(record_file(settings.output, partition.index), {**summaries, "empty": num_empty})
    return partition.size


def read_record(output: Path, index: int) -> dict[str, Any] | None:
    """The record of a finished partition, or None when it is not finished.

    Args:
        output: Folder of the corpus.
        index: Index of the partition.
    """
    file = record_file(output, index)
    record: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    return record


def _batches(partition: Partition) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for piece in partition.pieces:
        for document in read_piece(piece, partition.source):
            batch.append(document)
            size += len(document.text)
            if size >= _BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
    yield batch


def _encode(tokenizer: Tokenizer, documents: list[Document]) -> Iterator[np.ndarray]:
    dtype = token_dtype(tokenizer.vocab_size)
    opening = [] if tokenizer.eot_id is None else [tokenizer.eot_id]
    for ids in tokenizer.encode_batch([document.text for document in documents]):
        yield np.array(opening + ids, dtype=dtype)


def _add(side: _Side, document: Document, tokens: np.ndarray) -> None:
    content = document.text.encode()
    side.documents += 1
    side.tokens += len(tokens)
    side.bytes += len(content)
    side.digests.append(int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little"))
    side.pending.append(tokens)
    side.pending_bytes += tokens.nbytes


def _flush(side: _Side, settings: Settings, partition: Partition, split: Split) -> None:
    if not side.pending:
        return
    folder = settings.output / split / partition.source_name
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"chunk-{partition.index:06d}-{len(side.chunks):04d}.bin"
    chunk = write_chunk(file, side.pending)
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    side.chunks.append({**asdict(chunk), "sha256": digest})
    side.pending, side.pending_bytes = [], 0


@lru_cache(maxsize=1)
def _load_tokenizer(path: Path, _fingerprint: str) -> Tokenizer:
    return Tokenizer.load(path)
