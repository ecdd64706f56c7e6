"""litdata's chunk files of tokens: the layout, in one place for the writer and the reader.

A chunk is `uint32 num_documents`, `uint32 offsets[num_documents + 1]` (bytes from the start of the file), then the
tokens of its documents one after another; `index.json` lists the chunks of a folder. litdata's own
`StreamingDataset(..., item_loader=TokensLoader())` reads these folders, and folders that `litdata.optimize` wrote with
a `TokensLoader` are read here.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

INDEX_FILE = "index.json"

MAX_CHUNK_BYTES = 2**32 - 1
"""Offsets in a chunk are 32 bits wide."""

_DTYPES = {"no_header_numpy:5": "uint16", "no_header_numpy:6": "uint32", "no_header_numpy:2": "int32"}
_DTYPES |= {"no_header_numpy:3": "int64", "no_header_tensor:20": "uint16", "no_header_tensor:15": "int32"}
_DTYPES |= {"no_header_tensor:16": "int32", "no_header_tensor:17": "int64", "no_header_tensor:18": "int64"}
_FORMATS = {"uint16": "no_header_numpy:5", "uint32": "no_header_numpy:6"}


@dataclass(frozen=True)
class ChunkInfo:
    """One chunk file of a folder.

    Attributes:
        filename: Its name in the folder.
        num_documents: Documents in it.
        num_tokens: Tokens in it.
        num_bytes: Bytes of its tokens and offsets, as litdata counts them.
    """

    filename: str
    num_documents: int
    num_tokens: int
    num_bytes: int

    def file_size(self, dtype: np.dtype[Any]) -> int:
        """Bytes of the whole file.

        Args:
            dtype: Type of a token.
        """
        return header_bytes(self.num_documents) + self.num_tokens * dtype.itemsize


def header_bytes(num_documents: int) -> int:
    """Where the tokens of a chunk start.

    Args:
        num_documents: Documents in the chunk.
    """
    return 4 * (num_documents + 2)


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The narrowest type that holds every token id.

    Args:
        vocab_size: Number of token ids.
    """
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


@contextmanager
def whole_file(file: Path, *, is_synced: bool = False) -> Iterator[Path]:
    """A path beside `file` to write to, renamed into place when the block ends without an error.

    A killed process leaves no torn file, at most one whose name ends in .tmp; an error leaves nothing.

    Args:
        file: Where; replaced when it exists. Its folder is made if need be.
        is_synced: Wait until the disk has it, so that it outlives a power failure.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if is_synced:
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def write_chunk(file: Path, documents: Sequence[np.ndarray]) -> ChunkInfo:
    """Write a chunk so that it is there whole or not at all.

    Args:
        file: Where; replaced when it exists.
        documents: Tokens of each document, all of one type.
    """
    start = header_bytes(len(documents))
    lengths = np.array([document.nbytes for document in documents], dtype=np.uint64)
    offsets = start + np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(lengths)])
    if offsets[-1] > MAX_CHUNK_BYTES:
        raise ValueError(
            f"The document at the end of {file.name} is {int(lengths[-1])} bytes of tokens; a chunk holds at most "
            f"{MAX_CHUNK_BYTES}. Cut the document up: give the source a `separator`."
        )
    header = np.concatenate([[len(documents)], offsets]).astype(np.uint32)
    with whole_file(file, is_synced=True) as temporary, open(temporary, "wb") as stream:
        stream.write(header.tobytes())
        for document in documents:
            stream.write(document.tobytes())
    num_tokens = sum(map(len, documents))
    return ChunkInfo(file.name, len(documents), num_tokens, int(offsets[-1]))


def write_index(folder: Path, chunks: Sequence[ChunkInfo], dtype: np.dtype[Any]) -> None:
    """Write `index.json`, as litdata lays it out.

    Args:
        folder: Folder of the chunks.
        chunks: The chunks, in order.
        dtype: Type of a token.
    """
    config = {
        "chunk_bytes": max((chunk.num_bytes for chunk in chunks), default=0),
        "chunk_size": None,
        "compression": None,
        "data_format": [_FORMATS[dtype.name]],
        "data_spec": '[1, {"type": null, "context": null, "children_spec": []}]',
        "encryption": None,
        "item_loader": "TokensLoader",
    }
    entries = [
        {"chunk_bytes": c.num_bytes, "chunk_size": c.num_documents, "dim": c.num_tokens, "filename": c.filename}
        for c in chunks
    ]
    write_json(folder / INDEX_FILE, {"chunks": entries, "config": config})


def read_index(file: Path) -> tuple[list[ChunkInfo], np.dtype[Any]]:
    """The chunks that an `index.json` lists, and the type of their tokens.

    Args:
        file: The `index.json`.
    """
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file.parent} is not a folder of token shards: it has no {file.name}.") from None
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}. Build the corpus again.") from error
    config = index["config"]
    data_format = config["data_format"]
    if len(data_format) != 1 or data_format[0] not in _DTYPES:
        raise ValueError(f"{file} holds {data_format}, not tokens. Write it with an item_loader=TokensLoader().")
    if config.get("compression") or config.get("encryption"):
        raise ValueError(f"{file} lists compressed or encrypted chunks, which cannot be mapped. Write them plain.")
    chunks = [
        ChunkInfo(entry["filename"], entry["chunk_size"], entry["dim"], entry["chunk_bytes"])
        for entry in index["chunks"]
    ]
    return chunks, np.dtype(_DTYPES[data_format[0]])


def write_json(file: Path, content: object) -> None:
    """Write JSON so that it is there whole or not at all.

    Args:
        file: Where; replaced when it exists.
        content: What.
    """
    with whole_file(file, is_synced=True) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=1, ensure_ascii=False)
        stream.write("\n")
