"""Documents on disk: a JSON object a line, compressed with zstandard. A file is there whole or not at all.

Nothing waits for the disk, as stages write thousands of files that can be made again: after a power failure, delete the
folder `stages`.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lmstack.data.shard_format import whole_file
from lmstack.prep.document import Document, Dropped

SUFFIX = ".jsonl.zst"
_LEVEL = 1  # a stage's files live until the next run; faster counts for more than smaller


class BlockWriter:
    """Writes records to one compressed file; used as a context."""

    def __init__(self, file: Path):
        """Open the file.

        Args:
            file: Where to write; not renamed, so give a temporary path.
        """
        import zstandard

        raw = open(file, "wb")  # noqa: SIM115 - closed with the stream
        self._stream: Any = zstandard.ZstdCompressor(level=_LEVEL).stream_writer(raw)

    def __enter__(self) -> "BlockWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def keep(self, document: Document) -> None:
        """Write a document.

        Args:
            document: Which.
        """
        self._write(_record(document))

    def drop(self, dropped: Dropped) -> None:
        """Write a dropped document with its reason.

        Args:
            dropped: Which.
        """
        self._write({**_record(dropped.document), "reason": dropped.reason, "detail": dropped.detail})

    def _write(self, record: dict[str, Any]) -> None:
        import orjson

        self._stream.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))


def write_documents(file: Path, documents: Iterable[Document]) -> None:
    """Write a file of documents.

    Args:
        file: Where.
        documents: In order.
    """
    with whole_file(file) as temporary, BlockWriter(temporary) as writer:
        for document in documents:
            writer.keep(document)


def read_documents(file: Path) -> Iterator[Document]:
    """The documents of a file.

    Args:
        file: Which.
    """
    for record in read_records(file):
        yield Document(record["text"], record["id"], record["source"], record["metadata"])


def read_dropped(file: Path) -> Iterator[Dropped]:
    """The dropped documents of a file.

    Args:
        file: Which.
    """
    for record in read_records(file):
        document = Document(record["text"], record["id"], record["source"], record["metadata"])
        yield Dropped(document, record["reason"], record["detail"])


def read_records(file: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a compressed file.

    Args:
        file: Which.
    """
    import orjson
    import zstandard

    with open(file, "rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
        rest = b""
        while block := stream.read(1 << 20):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                yield orjson.loads(line)
        assert not rest, f"{file} ends within a line"


def _record(document: Document) -> dict[str, Any]:
    return {"id": document.id, "source": document.source, "text": document.text, "metadata": document.metadata}
