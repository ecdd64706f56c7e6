"""A document on its way through corpus preparation, and what becomes of it."""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Document:
    """A text and where it comes from.

    Attributes:
        text: The text as the stages before have left it.
        id: Stable name, a hash of source, path and position: the same in every run, whatever the number of workers.
        source: Name of its source.
        metadata: What is known of it: fields of its record, and what stages have found (`language`, `cluster`, ...).
    """

    text: str
    id: str
    source: str
    metadata: dict[str, Any] = field(default_factory=dict)

    def with_text(self, text: str) -> "Document":
        """The document with another text.

        Args:
            text: The new text.
        """
        return self if text == self.text else replace(self, text=text)

    def with_metadata(self, /, **found: Any) -> "Document":
        """The document with more metadata.

        Args:
            **found: What a stage has found; JSON can hold it.
        """
        return replace(self, metadata={**self.metadata, **found})


@dataclass(frozen=True, slots=True)
class Dropped:
    """A document that goes no further, and why.

    Attributes:
        document: The document as the stage met it.
        reason: Short and from a small set, such as `too few words`; drops are counted by it.
        detail: What was measured, such as `12 words, fewer than 50`.
    """

    document: Document
    reason: str
    detail: str = ""


Verdict = Document | Dropped


def document_id(source: str, path: str, position: int) -> str:
    """The stable name of a document.

    Args:
        source: Name of its source.
        path: File it comes from.
        position: Its place in the file: a byte, a row, or a record.
    """
    name = f"{source}\0{path}\0{position}".encode("utf-8", "surrogateescape")  # names of files may be any bytes
    return hashlib.blake2b(name, digest_size=12).hexdigest()
