"""The language of a document, without a download: by script where a script has one language, else by py3langid."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lmstack.prep.document import Document, Dropped, Verdict
from lmstack.prep.stage import Context, Filter, StageSettings

_SCRIPTS = {
    "latin": "A-Za-z\u00c0-\u024f\u1e00-\u1eff",
    "han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f",
    "kana": "\u3041-\u30ff\u31f0-\u31ff",
    "hangul": "\uac00-\ud7af\u1100-\u11ff",
    "cyrillic": "\u0400-\u052f",
    "arabic": "\u0600-\u06ff\u0750-\u077f",
    "devanagari": "\u0900-\u097f",
    "greek": "\u0370-\u03ff",
    "hebrew": "\u0590-\u05ff",
    "thai": "\u0e00-\u0e7f",
}
_PATTERNS = {name: re.compile(f"[{characters}]+") for name, characters in _SCRIPTS.items()}
_PATTERNS = {"other": re.compile(r"[^\W\d_]+"), **_PATTERNS}  # the letters of all scripts that follow, and of the rest
_ONE_LANGUAGE = {"hangul": "ko", "greek": "el", "hebrew": "he", "thai": "th"}
_WEIGHT = {"han": 3.0, "kana": 2.0, "hangul": 2.5}
"""Letters of an alphabet that carry as much as one character; to compare how much is said in each."""

_NUM_SLICES, _SLICE = 30, 1000
"""Of a longer text this many slices are counted, of so many characters."""

UNKNOWN = "und"
MIXED = "mixed"


@dataclass(frozen=True, kw_only=True)
class IdentifyLanguage(StageSettings):
    """Notes each document's `language`; drops those that are not wanted.

    Attributes:
        kind: `language`.
        keep: Languages to keep, as ISO 639-1 names them, with `mixed` and `und` (too little text); null keeps all.
        min_share: A document whose main script has a smaller share of what is said is `mixed`. From 0.5 to 1.
        candidates: Languages that py3langid chooses among; null for the 97 it knows. Fewer are less often mistaken.
        sample: Letters that py3langid looks at, a third each from the beginning, the middle and the end.
    """

    kind: Literal["language"] = "language"
    keep: list[str] | None = None
    min_share: float = 0.7
    candidates: list[str] | None = None
    sample: int = 300

    def __post_init__(self) -> None:
        if not 0.5 <= self.min_share <= 1:
            raise ValueError(f"language.min_share={self.min_share} is not in [0.5, 1]. Use 0.7.")
        if self.sample < 3:
            raise ValueError(f"language.sample={self.sample} letters tell no language. Use 300.")

    def filter(self, context: Context) -> Filter:
        """The function that identifies.

        Args:
            context: Of the partition.
        """
        candidates = None if self.candidates is None else tuple(self.candidates)
        kept = None if self.keep is None else frozenset(self.keep)

        def judge(document: Document) -> Verdict:
            language = identify(document.text, self.min_share, candidates, self.sample)
            context.counts[f"identified as {language}"] += 1
            if kept is not None and language not in kept:
                return Dropped(document.with_metadata(language=language), f"language {language}", "not wanted")
            return document.with_metadata(language=language)

        return judge


def identify(
    text: str, min_share: float = 0.7, candidates: tuple[str, ...] | None = None, sample: int = IdentifyLanguage.sample
) -> str:
    """The language of a text, `mixed` where two scripts share it, `und` where there are hardly any letters.

    Args:
        text: The text.
        min_share: Share of the main script below which it is mixed.
        candidates: Languages to choose among; None for all.
        sample: Letters to look at.
    """
    shares = script_shares(text)
    if not shares:
        return UNKNOWN
    if "kana" in shares and shares["kana"] + shares.get("han", 0.0) >= min_share:
        return "ja" if shares["kana"] > 0.1 else "zh"  # Chinese pages quote a little Japanese
    script = max(shares, key=lambda name: shares[name])
    if shares[script] < min_share:
        return MIXED
    if script == "han":
        return "zh"
    if script in _ONE_LANGUAGE:
        return _ONE_LANGUAGE[script]
    return _identifier(candidates)(_sample(text, _PATTERNS[script], sample))


def script_shares(text: str) -> dict[str, float]:
    """How much of a text is said in each script, weighted so that a Chinese character counts as three letters.

    Args:
        text: The text.
    """
    if text.isascii():
        return {"latin": 1.0} if _PATTERNS["latin"].search(text) else {}
    if len(text) > _NUM_SLICES * _SLICE:
        starts = np.linspace(0, len(text) - _SLICE, _NUM_SLICES, dtype=int)
        text = "".join(text[start : start + _SLICE] for start in starts)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    numbers = np.bincount(_script_of_character()[codes], minlength=len(_PATTERNS) + 1)[1:]
    counts = {name: int(n) * _WEIGHT.get(name, 1.0) for name, n in zip(_PATTERNS, numbers, strict=True)}
    whole = sum(counts.values())
    return {name: count / whole for name, count in counts.items() if count}


@cache
def _script_of_character() -> NDArray[np.uint8]:
    """For every code point the place of its script in `_PATTERNS`, from 1; 0 for what is no letter."""
    table = np.zeros(sys.maxunicode + 1, dtype=np.uint8)
    characters = "".join(map(chr, range(len(table))))
    for number, letters in enumerate(_PATTERNS.values(), 1):
        for match in letters.finditer(characters):
            table[match.start() : match.end()] = number
    return table


def _sample(text: str, letters: re.Pattern[str], size: int) -> str:
    """Words of one script from three places; addresses and figures say nothing of the language."""
    third = size // 3
    places = (0, len(text) // 2, max(0, len(text) - 3 * third))
    if len(text) <= 9 * third:
        return " ".join(letters.findall(text))[:size]
    return " ".join(" ".join(letters.findall(text[place : place + 3 * third]))[:third] for place in places)


@lru_cache(maxsize=4)
def _identifier(candidates: tuple[str, ...] | None) -> Callable[[str], str]:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    if candidates is not None:
        identifier.set_languages(list(candidates))
    return lambda text: str(identifier.classify(text)[0])
