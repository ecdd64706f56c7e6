"""Reads a piece of a source, whatever its format; nothing that it meets stops it, and nothing is lost unsaid."""

import csv
import zlib
from collections.abc import Callable, Iterator

from lmstack.prep.collect.crawls import read_warc
from lmstack.prep.collect.pages import read_html, read_python, read_text
from lmstack.prep.collect.reading import Reading
from lmstack.prep.collect.records import read_csv, read_json, read_jsonl, read_parquet
from lmstack.prep.document import Verdict

_READERS: dict[str, Callable[[Reading], Iterator[Verdict]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "parquet": read_parquet,
    "text": read_text,
    "markdown": read_text,
    "code": read_text,
    "html": read_html,
    "warc": read_warc,
    "python": read_python,
}


def read_piece(reading: Reading) -> Iterator[Verdict]:
    """Every document of a piece, and a drop for everything that could not be read.

    Args:
        reading: Of the piece.
    """
    from zstandard import ZstdError

    piece = reading.piece
    if piece.format is None:
        yield reading.dropped("unknown format", "no suffix that is known; name the source's `format`", -1)
        return
    empty = True
    try:
        for verdict in _READERS[piece.format](reading):
            empty = False
            yield verdict
    except (OSError, EOFError, ValueError, NotImplementedError, zlib.error, csv.Error, ZstdError) as error:
        yield reading.dropped("unreadable file", f"{type(error).__name__}: {error}", -1)
    else:
        if empty and piece.start == 0:
            yield reading.dropped("empty file", "no document in it", -1)
