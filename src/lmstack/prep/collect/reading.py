"""What a reader of any format makes of what it finds: a document, or a drop with the reason."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from lmstack.prep.collect.cutting import Piece
from lmstack.prep.collect.encoding import decode, detect_encoding, without_surrogates
from lmstack.prep.collect.members import MemberEnd
from lmstack.prep.collect.source import Source
from lmstack.prep.document import Document, Dropped, Verdict, document_id

_EXCERPT = 2000
"""Characters kept of a document that is too long to hold."""


@dataclass(frozen=True)
class Reading:
    """The reading of one piece.

    Attributes:
        name: Of the source.
        source: How to read it.
        piece: What is read.
        counts: Characters that could not be read, and the encodings found.
    """

    name: str
    source: Source
    piece: Piece
    counts: Counter[str] = field(default_factory=Counter)

    def document(self, text: str, position: int, /, **metadata: Any) -> Verdict:
        """A document, unless it is empty or too long.

        Args:
            text: Its text.
            position: Its place in the file.
            **metadata: What else the file says of it.
        """
        text, num_replaced = without_surrogates(text)
        if num_replaced:
            self.counts["halves of surrogate pairs replaced"] += num_replaced
        if not text.strip():
            return self.dropped("empty", "no text", position)
        limit = self.source.max_document_bytes
        if len(text) > limit or (4 * len(text) > limit and len(text.encode()) > limit):
            return self.dropped("too long", f"more than {limit:,} bytes", position, text)
        return Document(text, self._id(position), self.name, self._metadata(metadata))

    def dropped(self, reason: str, detail: str, position: int, text: str = "") -> Dropped:
        """What could not be read.

        Args:
            reason: From a small set.
            detail: What was met.
            position: Where in the file.
            text: What there is of it.
        """
        text, _ = without_surrogates(text[:_EXCERPT])
        return Dropped(Document(text, self._id(position), self.name, self._metadata({})), reason, detail)

    def too_long(self, content: bytes, what: str, position: int) -> Dropped:
        """A stretch of bytes that is longer than a document may be.

        Args:
            content: Its beginning.
            what: Such as `a file`.
            position: Where in the file.
        """
        excerpt = content[:_EXCERPT].decode("utf-8", "replace")
        limit = self.source.max_document_bytes
        return self.dropped("too long", f"{what} of more than {limit:,} bytes", position, excerpt)

    def damaged(self, end: MemberEnd) -> Dropped:
        """What a damaged member of a compressed file held, as one drop.

        Args:
            end: Of the member.
        """
        return self.dropped(end.reason, end.detail, -1 - end.offset)

    def decoded(self, content: bytes) -> str:
        """The text of bytes; what cannot be decoded is counted.

        Args:
            content: A whole text, or enough of it to detect the encoding.
        """
        encoding = self.source.encoding or detect_encoding(content)
        text, num_bad = decode(content, encoding)
        if encoding != "utf-8":
            self.counts[f"texts read as {encoding}"] += 1
        self.count_undecodable(num_bad)
        return text.replace("\r\n", "\n")

    def of_utf8(self) -> "Reading":
        """The reading of what has been put into UTF-8."""
        return replace(self, source=replace(self.source, encoding="utf-8"))

    def count_undecodable(self, num_bad: int) -> None:
        """Count a text that has characters in the place of bytes that could not be read.

        Args:
            num_bad: How many; with none it is not counted.
        """
        if num_bad:
            self.counts["texts with undecodable bytes"] += 1
            self.counts["undecodable bytes"] += num_bad

    def _id(self, position: int) -> str:
        return document_id(self.name, self.piece.path, position)

    def _metadata(self, metadata: dict[str, Any]) -> dict[str, Any]:
        path, _ = without_surrogates(self.piece.path)  # names of files may be any bytes
        return {**self.source.metadata, **metadata, "path": path}
