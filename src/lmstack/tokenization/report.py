"""What a tokenizer does to text, in numbers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lmstack.tokenization.tokenizer import Tokenizer

_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class SourceReport:
    """Counts of one source under one tokenizer.

    Attributes:
        documents: Number of texts.
        bytes: Their length in UTF-8.
        words: Stretches of text without white space.
        tokens: Tokens, special ones not counted.
    """

    documents: int
    bytes: int
    words: int
    tokens: int

    @property
    def bytes_per_token(self) -> float:
        """How much text a token stands for: higher is shorter sequences."""
        return self.bytes / self.tokens if self.tokens else 0.0

    @property
    def fertility(self) -> float:
        """Tokens per word: 1 is a token for every word. Meaningless for scripts that do not space their words."""
        return self.tokens / self.words if self.words else 0.0


def tokenizer_report(tokenizer: Tokenizer, sources: Mapping[str, Iterable[str]]) -> dict[str, SourceReport]:
    """Bytes per token and tokens per word of each source.

    Args:
        tokenizer: The tokenizer to measure.
        sources: Texts by source name; each is read once.
    """
    return {name: _report(tokenizer, texts) for name, texts in sources.items()}


def _report(tokenizer: Tokenizer, texts: Iterable[str]) -> SourceReport:
    documents = num_bytes = words = tokens = 0
    batch: list[str] = []
    size = 0
    for text in texts:
        documents += 1
        num_bytes += len(text.encode())
        words += len(text.split())
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            tokens += sum(map(len, tokenizer.encode_batch(batch)))
            batch, size = [], 0
    tokens += sum(map(len, tokenizer.encode_batch(batch)))
    return SourceReport(documents=documents, bytes=num_bytes, words=words, tokens=tokens)
