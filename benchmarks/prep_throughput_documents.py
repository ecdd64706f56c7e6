"""Documents of any size for `prep_throughput.py`, made from real text; nothing but the standard library is needed.

Text is cut into documents of 1,000 to 7,000 characters. When it is used up, it comes again with every fourth word or
Chinese character, drawn anew, replaced by another of the same document: copies are long alike but are no
near-duplicates, as they share a tenth of their 5-grams.
"""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = (".txt", ".md", ".rst")
SHORTEST, LONGEST = 1000, 7000
REPLACED = 4
MOST_BYTES_PER_LETTER = 1.05  # of English; quotation marks have three
_WORD = re.compile("([A-Za-z]+|[\u4e00-\u9fff])")


def make_documents(text: Path, num_bytes: int, *, english_only: bool = False) -> Iterator[str]:
    """Documents until their UTF-8 has a size, the same in every run.

    Args:
        text: Folder of text files.
        num_bytes: Bytes of all documents; the last one ends it.
        english_only: Leave out those that are not English.
    """
    sources = [file.read_text(encoding="utf-8", errors="replace") for file in _files(text)]
    draw = random.Random(0)
    written = copy = 0
    while True:
        for source in sources:
            for document in _cut(source, draw):
                if english_only and len(document.encode()) > MOST_BYTES_PER_LETTER * len(document):
                    continue
                changed = _replace_words(document, draw) if copy else document
                yield changed
                written += len(changed.encode())
                if written >= num_bytes:
                    return
        copy += 1
        if not written:
            raise ValueError(f"{text} holds no text of {', '.join(SUFFIXES)}. Name another folder.")


def write_documents(file: Path, text: Path, num_bytes: int, *, english_only: bool = False) -> int:
    """The documents as JSONL.

    Args:
        file: To write.
        text: As for `make_documents`.
        num_bytes: As for `make_documents`.
        english_only: As for `make_documents`.

    Returns:
        How many there are.
    """
    number = 0
    with open(file, "w", encoding="utf-8") as stream:
        for document in make_documents(text, num_bytes, english_only=english_only):
            stream.write(json.dumps({"text": document, "id": str(number)}, ensure_ascii=False) + "\n")
            number += 1
    return number


def _files(text: Path) -> list[Path]:
    found = (path for path in sorted(text.rglob("*")) if path.suffix in SUFFIXES)
    return [path for path in found if path.is_file() and not path.name.startswith(("SOURCE", "SHA256"))]


def _cut(source: str, draw: random.Random) -> Iterator[str]:
    start = 0
    while start < len(source):
        stop = start + draw.randint(SHORTEST, LONGEST)
        end = source.find("\n", stop)
        stop = end + 1 if 0 <= end < stop + SHORTEST else stop
        if document := source[start:stop].strip():
            yield document
        start = stop


def _replace_words(document: str, draw: random.Random) -> str:
    parts = _WORD.split(document)
    words = range(1, len(parts), 2)
    if words:
        count = len(words) // REPLACED
        for to, other in zip(draw.choices(words, k=count), draw.choices(words, k=count), strict=True):
            parts[to] = parts[other]
    return "".join(parts)
