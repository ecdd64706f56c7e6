"""What a text is counted in: words, or characters where a language puts no spaces between words."""

import re
from collections.abc import Sequence
from typing import Literal

Unit = Literal["words", "characters"]

TERMINAL = (".", "!", "?", '"', "'", "”", "’", "。", "！", "？", "…", "」", "』")
"""What a sentence may end with, in English and Chinese."""

_CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\u3041-\u30ff\uac00-\ud7af]")
_PIECES = re.compile(
    "[\u3400-\u4dbf\u4e00-\u9fff\u3041-\u30ff\uac00-\ud7af]|[^\\s\u3400-\u4dbf\u4e00-\u9fff\u3041-\u30ff\uac00-\ud7af]+"
)
_SENTENCE_END = re.compile(r"[.!?]+(?=[\s\"'”’)\]]|\Z)|[。！？…]+")


def units(text: str, unit: Unit) -> list[str]:
    """Words between white space; with `characters`, every Chinese, Japanese or Korean character is one of them.

    Args:
        text: The text.
        unit: What to count in.
    """
    return text.split() if unit == "words" or not _CJK.search(text) else _PIECES.findall(text)


def count_units(text: str, unit: Unit) -> int:
    """How many words or characters a text has.

    Args:
        text: The text.
        unit: What to count in.
    """
    return len(units(text, unit))


def lines_of(text: str) -> list[str]:
    """The lines that are not blank, without white space at their ends.

    Args:
        text: The text.
    """
    return [line for line in (line.strip() for line in text.split("\n")) if line]


def count_sentences(text: str) -> int:
    """How many sentences end in a text; English and Chinese.

    Args:
        text: The text.
    """
    return sum(1 for _ in _SENTENCE_END.finditer(text))


def share(part: float | int, whole: float | int) -> float:
    """A part of a whole, 0 of nothing.

    Args:
        part: The part.
        whole: The whole.
    """
    return part / whole if whole else 0.0


def total_length(texts: Sequence[str]) -> int:
    """Characters of all texts.

    Args:
        texts: Any.
    """
    return sum(map(len, texts))
