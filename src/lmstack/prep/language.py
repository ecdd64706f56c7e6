"""The language of a document, without a download: by script where a script has one language, else by py3langid."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

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
_ONE_LANGUAGE = {"hangul": "ko", "greek": "el", "hebrew": "he", "thai": "th"}
_WEIGHT = {"han": 3.0, "kana": 2.0, "hangul": 2.5}
"""Letters of an alphabet that carry as much as one character; to compare how much is said in each."""

_SAMPLE = 600
"""Characters that py3langid looks at: a third each from the beginning, the middle and the end."""

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
    """

    kind: Literal["language"] = "language"
    keep: list[str] | None = None
    min_share: float = 0.7
    candidates: list[str] | None = None

    def __post_init__(self) -> None:
        if not 0.5 <= self.min_share <= 1:
            raise ValueError(f"language.min_share={self.min_share} is not in [0.5, 1]. Use 0.7.")

    def filter(self, context: Context) -> Filter:
        """The function that identifies.

        Args:
            context: Of the partition.
        """
        candidates = None if self.candidates is None else tuple(self.candidates)
        kept = None if self.keep is None else frozenset(self.keep)

        def judge(document: Document) -> Verdict:
            language = identify(document.text, min_share=self.min_share, candidates=candidates)
            context.counts[f"identified as {language}"] += 1
            if kept is not None and language not in kept:
                return Dropped(document.with_metadata(language=language), f"language {language}", "not wanted")
            return document.with_metadata(language=language)

        return judge


def identify(text: str, *, min_share: float = 0.7, candidates: tuple[str, ...] | None = None) -> str:
    """The language of a text, `mixed` where two scripts share it, `und` where there are hardly any letters.

    Args:
        text: The text.
        min_share: Share of the main script below which it is mixed.
        candidates: Languages to choose among; None for all.
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
    return _identifier(candidates)(_sample(text, _PATTERNS[script]))


def script_shares(text: str) -> dict[str, float]:
    """How much of a text is said in each script, weighted so that a Chinese character counts as three letters.

    Args:
        text: The text.
    """
    text = text if len(text) <= 30_000 else text[:10_000] + text[len(text) // 2 :][:10_000] + text[-10_000:]
    if text.isascii():
        return {"latin": 1.0} if _PATTERNS["latin"].search(text) else {}
    counts = {
        name: sum(map(len, pattern.findall(text))) * _WEIGHT.get(name, 1.0) for name, pattern in _PATTERNS.items()
    }
    whole = sum(counts.values())
    return {name: count / whole for name, count in counts.items() if count} if whole else {}


def _sample(text: str, letters: re.Pattern[str]) -> str:
    """Words of one script from three places; addresses and figures say nothing of the language."""
    third = _SAMPLE // 3
    places = (0, len(text) // 2, max(0, len(text) - 3 * third))
    if len(text) <= 9 * third:
        return " ".join(letters.findall(text))[:_SAMPLE]
    return " ".join(" ".join(letters.findall(text[place : place + 3 * third]))[:third] for place in places)


@lru_cache(maxsize=4)
def _identifier(candidates: tuple[str, ...] | None) -> Callable[[str], str]:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    if candidates is not None:
        identifier.set_languages(list(candidates))
    return lambda text: str(identifier.classify(text)[0])
