"""Random access to the tokens of one source, chunk by chunk through memory maps."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, Integer

from lmstack.data.remote import local_copy
from lmstack.data.shard_format import INDEX_FILE, header_bytes, read_index

_MAX_OPEN_CHUNKS = 256
"""Each open map holds a file descriptor; 1024 is a usual limit."""


class TokenRows(NamedTuple):
    """Stretches of a token stream.

    Attributes:
        tokens: The tokens.
        document_ids: Which document of its row a token belongs to, counted from 0.
        position_ids: Where a token stands in its document, counted from 0 at the document's start or the row's.
    """

    tokens: Int64[np.ndarray, "N T"]
    document_ids: Int64[np.ndarray, "N T"]
    position_ids: Int64[np.ndarray, "N T"]


class TokenShards:
    """The token stream of a folder of litdata chunks: its documents one after another.

    Documents are told apart by the offsets in the chunks' headers, never by token ids.

    Args:
        folder: The folder, or its URL (`s3://`, `gs://`, ...): chunks are then fetched when they are first read.
    """

    def __init__(self, folder: str | Path):
        self.folder = str(folder)
        index_file = local_copy(self.folder, INDEX_FILE)
        self.chunks, self.dtype = read_index(index_file)
        self._starts = np.cumsum([0, *(chunk.num_tokens for chunk in self.chunks)], dtype=np.int64)
        self._first_documents = np.cumsum([0, *(chunk.num_documents for chunk in self.chunks)], dtype=np.int64)
        self._open: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    @property
    def num_tokens(self) -> int:
        """Tokens in the stream."""
        return int(self._starts[-1])

    @property
    def num_documents(self) -> int:
        """Documents in the stream."""
        return int(self._first_documents[-1])

    def check_files(self) -> None:
        """Check that every chunk file of a local folder is there and has its size, without reading them.

        Raises:
            ValueError: A file is missing, unreadable or cut; it is named.
        """
        for info in self.chunks:
            file = Path(self.folder, info.filename)
            size = os.path.getsize(file) if os.access(file, os.R_OK) else None
            if size != info.file_size(self.dtype):
                state = (
                    "cannot be read"
                    if size is None
                    else f"is damaged: {size} bytes, expected {info.file_size(self.dtype)}"
                )
                raise ValueError(f"The shard {file} {state}. Build the corpus again with overwrite=true.")

    def document(self, index: int) -> Integer[np.ndarray, " N"]:
        """The tokens of one document.

        Args:
            index: Which, counted from 0.
        """
        if not 0 <= index < self.num_documents:
            raise ValueError(f"There is no document {index} in {self.folder}: it holds {self.num_documents}.")
        chunk = int(np.searchsorted(self._first_documents, index, side="right")) - 1
        boundaries, tokens = self._chunk(chunk)
        local = index - int(self._first_documents[chunk])
        return tokens[self._token_index(chunk, boundaries[local]) : self._token_index(chunk, boundaries[local + 1])]

    def document_at(self, token: int) -> int:
        """Which document a token of the stream belongs to, counted from 0.

        Args:
            token: Index in the stream; past its end the stream begins again.
        """
        token %= self.num_tokens
        chunk = int(self._starts.searchsorted(token, side="right")) - 1
        boundaries, _ = self._chunk(chunk)
        offset = (
            header_bytes(self.chunks[chunk].num_documents) + (token - int(self._starts[chunk])) * self.dtype.itemsize
        )
        return int(self._first_documents[chunk]) + int(boundaries.searchsorted(np.uint32(offset), side="right")) - 1

    def gather(self, starts: Int64[np.ndarray, " N"], length: int) -> TokenRows:
        """Stretches of the stream, across the borders of chunks; past its end the stream begins again.

        Args:
            starts: Index in the stream of each stretch's first token.
            length: Tokens in a stretch.
        """
        return gather_rows([self], np.zeros(len(starts), dtype=np.int64), starts, length)

    def copy_row(self, start: int, tokens: Int64[np.ndarray, " T"], opens: Bool[np.ndarray, " T"]) -> None:
        """Fill a row with the stretch that begins at `start`; past the end of the stream it begins again.

        Args:
            start: Index in the stream of the first token.
            tokens: Filled with tokens.
            opens: Made true where a token opens a document; false on entry.
        """
        size, done = self.dtype.itemsize, 0
        while done < len(tokens):
            position = (start + done) % self.num_tokens
            chunk = int(self._starts.searchsorted(position, side="right")) - 1
            boundaries, stored = self._chunk(chunk)
            begin = position - int(self._starts[chunk])
            count = min(len(tokens) - done, len(stored) - begin)
            tokens[done : done + count] = stored[begin : begin + count]
            origin = header_bytes(self.chunks[chunk].num_documents)
            window = np.array([origin + begin * size, origin + (begin + count) * size], dtype=np.uint32)
            first, last = boundaries[:-1].searchsorted(window)  # of one type: another would copy the boundaries
            if first < last:
                opens[done + (boundaries[first:last].astype(np.int64) - origin) // size - begin] = True
            done += count

    def _token_index(self, chunk: int, offset: np.uint32) -> int:
        return (int(offset) - header_bytes(self.chunks[chunk].num_documents)) // self.dtype.itemsize

    def _chunk(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Document boundaries (bytes) and tokens of a chunk."""
        if index in self._open:
            self._open.move_to_end(index)
            return self._open[index]
        info = self.chunks[index]
        file = local_copy(self.folder, info.filename)
        try:
            content: np.ndarray = np.memmap(file, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise ValueError(f"The shard {file} cannot be read: {error}. Build the corpus again.") from error
        if len(content) != info.file_size(self.dtype):
            raise ValueError(
                f"The shard {file} is damaged: {len(content)} bytes, expected {info.file_size(self.dtype)}. "
                "Build the corpus again with overwrite=true."
            )
        content = content.view(np.ndarray)  # slices of plain arrays are made ten times faster
        origin = header_bytes(info.num_documents)
        self._open[index] = content[4:origin].view(np.uint32), content[origin:].view(self.dtype)
        if len(self._open) > _MAX_OPEN_CHUNKS:
            self._open.popitem(last=False)
        return self._open[index]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


def gather_rows(
    shards: Sequence[TokenShards], source: Int64[np.ndarray, " N"], starts: Int64[np.ndarray, " N"], length: int
) -> TokenRows:
    """Stretches of several streams.

    Args:
        shards: The streams.
        source: Which stream each stretch is of.
        starts: Index in its stream of each stretch's first token.
        length: Tokens in a stretch.
    """
    tokens = np.empty((len(starts), length), dtype=np.int64)
    opens = np.zeros((len(starts), length), dtype=bool)
    for row, (index, start) in enumerate(zip(source.tolist(), starts.tolist(), strict=True)):
        shards[index].copy_row(start, tokens[row], opens[row])
    opens[:, 0] = True  # what a row begins in the middle of counts as a document of its own
    columns = np.arange(length)
    position_ids = columns - np.maximum.accumulate(np.where(opens, columns, 0), axis=1)
    return TokenRows(tokens, np.cumsum(opens, axis=1) - 1, position_ids)
