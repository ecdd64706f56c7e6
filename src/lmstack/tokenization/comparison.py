"""What tokenizers do to the same text, in numbers."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from lmstack.tokenization.tokenizer import Tokenizer

RENYI_ORDER = 2.5
"""The order that goes best with the quality of translations (arXiv:2306.16842, section 5)."""

RARE_COUNT = 10
"""A token seen fewer times than this is rare: its embedding is hardly trained."""

_CHINESE = r"\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CHINESE_CHARACTER = re.compile(f"[{_CHINESE}]")
_WORD = re.compile(rf"[{_CHINESE}]|[^\s{_CHINESE}]+")
_BATCH_CHARACTERS = 1 << 20


@dataclass
class TextCounts:
    """Counts of some texts under one tokenizer.

    Attributes:
        documents: Number of texts.
        bytes: Their length in UTF-8.
        characters: Their length in code points.
        words: Stretches without white space, and Chinese characters one by one.
        tokens: Tokens, special ones not counted.
    """

    documents: int = 0
    bytes: int = 0
    characters: int = 0
    words: int = 0
    tokens: int = 0

    @property
    def bytes_per_token(self) -> float:
        """How much text a token stands for: higher is shorter sequences."""
        return self.bytes / self.tokens if self.tokens else 0.0

    @property
    def characters_per_token(self) -> float:
        """The same in code points."""
        return self.characters / self.tokens if self.tokens else 0.0

    @property
    def fertility(self) -> float:
        """Tokens per word, and per character in Chinese: 1 is a token for every word."""
        return self.tokens / self.words if self.words else 0.0

    def add(self, text: str, num_tokens: int) -> None:
        """Count one text.

        Args:
            text: The text.
            num_tokens: What it was cut into.
        """
        self.documents += 1
        self.bytes += len(text.encode())
        self.characters += len(text)
        self.words += sum(1 for _ in _WORD.finditer(text))
        self.tokens += num_tokens


@dataclass
class TokenizerFigures:
    """What one tokenizer did.

    Attributes:
        sources: Counts by source.
        languages: Counts by `language_of` each document.
        token_counts: How often each token was used.
    """

    token_counts: np.ndarray
    sources: dict[str, TextCounts] = field(default_factory=dict)
    languages: dict[str, TextCounts] = field(default_factory=dict)

    @property
    def renyi_efficiency(self) -> float:
        """`renyi_efficiency` of the tokens of all sources."""
        return renyi_efficiency(self.token_counts)


@dataclass(frozen=True)
class VocabularyUse:
    """Tokens that a model could hardly learn from the text.

    Attributes:
        unseen: Tokens that never came.
        rare: Tokens that came, but fewer than `RARE_COUNT` times.
        swallowed: Unseen tokens that are parts of longer ones: whenever their pair came, the longer one took it.
        unreachable: Unseen tokens whose own text is cut otherwise (arXiv:2405.05417, section 3.1): no text makes them.
        other_unseen: The other unseen ones: the text they were made for is not in this sample.
    """

    unseen: int
    rare: int
    swallowed: list[str]
    unreachable: list[str]
    other_unseen: list[str]


def compare_tokenizers(
    tokenizers: Mapping[str, Tokenizer], sources: Mapping[str, Iterable[str]]
) -> dict[str, TokenizerFigures]:
    """The figures of each tokenizer on the same texts.

    Args:
        tokenizers: By name.
        sources: Texts by source name; each is read once.
    """
    figures = {name: TokenizerFigures(np.zeros(t.vocab_size, dtype=np.int64)) for name, t in tokenizers.items()}
    for source, texts in sources.items():
        for found in figures.values():
            found.sources[source] = TextCounts()
        for batch in _batches(texts):
            for name, tokenizer in tokenizers.items():
                _count(figures[name], source, batch, tokenizer)
    return figures


def renyi_efficiency(token_counts: np.ndarray, order: float = RENYI_ORDER) -> float:
    """Rényi entropy of the tokens' frequencies over its largest value, ln V (arXiv:2306.16842, definition 4.3).

    Args:
        token_counts: How often each of the V tokens was used.
        order: Larger counts frequent tokens more; not 1.

    Returns:
        From 0, one token only, to 1, all equally often; 0 for no tokens.
    """
    if token_counts.sum() == 0 or len(token_counts) < 2:
        return 0.0
    probs = token_counts / token_counts.sum()
    return float(np.log((probs**order).sum()) / (1 - order) / np.log(len(probs)))


def vocabulary_use(tokenizer: Tokenizer, token_counts: np.ndarray) -> VocabularyUse:
    """Which tokens a text leaves out, and why.

    Args:
        tokenizer: The tokenizer.
        token_counts: How often each token was used.
    """
    entries = tokenizer.text_entries()
    unseen = [index for index in sorted(entries) if token_counts[index] == 0]
    parts = tokenizer.merged_entries()
    kinds: dict[str, list[str]] = {"swallowed": [], "unreachable": [], "other_unseen": []}
    for index in unseen:
        text = tokenizer.decode([index])
        is_text = "\ufffd" not in text  # a part of a character cannot be encoded alone
        if is_text and tokenizer.encode(text) != [index]:
            kind = "unreachable"
        else:
            kind = "swallowed" if entries[index] in parts else "other_unseen"
        kinds[kind].append(text if is_text else entries[index])
    counts = token_counts[list(entries)]
    return VocabularyUse(len(unseen), int(((counts > 0) & (counts < RARE_COUNT)).sum()), **kinds)


def language_of(text: str) -> str:
    """`chinese` where at least three in ten characters that are no white space are Chinese, otherwise `other`.

    Args:
        text: A document.
    """
    chinese = sum(1 for _ in _CHINESE_CHARACTER.finditer(text))
    return "chinese" if chinese and 10 * chinese >= 3 * sum(map(len, text.split())) else "other"


def _batches(texts: Iterable[str]) -> Iterable[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _count(figures: TokenizerFigures, source: str, batch: list[str], tokenizer: Tokenizer) -> None:
    for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
        figures.sources[source].add(text, len(ids))
        figures.languages.setdefault(language_of(text), TextCounts()).add(text, len(ids))
        figures.token_counts += np.bincount(ids, minlength=len(figures.token_counts))
