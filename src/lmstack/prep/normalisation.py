"""Text made regular: one spelling of each character, no debris of encodings, markup and layout."""

import html
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from lmstack.prep.document import Document, Dropped, Verdict
from lmstack.prep.stage import Context, Filter, StageSettings

StepName = Literal[
    "mojibake",
    "entities",
    "markup",
    "nfc",
    "nfkc",
    "control_characters",
    "whitespace",
    "simplified_chinese",
    "emoji_names",
]
DEFAULT_STEPS: tuple[StepName, ...] = ("mojibake", "nfc", "control_characters", "whitespace")
_TextFunction = Callable[[str], str]

_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff]+"
)
"""Controls, soft hyphens, zero-width spaces and direction marks; joiners stay, as emoji and scripts need them."""

_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f]")  # not the ideographic space, which indents Chinese
_LINE_ENDS = re.compile("\r\n?|[\u0085\u2028\u2029]")
_TRAILING = re.compile(r"[ \t]+(?=\n|\Z)")
_BLANK_LINES = re.compile(r"\n{3,}")
_TAGS = (
    "a|abbr|article|aside|b|blockquote|br|button|center|code|div|em|figcaption|figure|font|footer|form|h[1-6]|header|hr|"
    "i|iframe|img|input|label|li|link|main|meta|nav|ol|p|pre|script|section|small|span|strong|style|sub|sup|table|tbody|"
    "td|th|thead|tr|u|ul"
)
_MARKUP = re.compile(
    rf"<!--.*?-->|<(script|style)\b[^<>]*>.*?</\1\s*>|</?(?:{_TAGS})(?:\s[^<>]*)?/?>", re.IGNORECASE | re.DOTALL
)


@dataclass(frozen=True, kw_only=True)
class Normalise(StageSettings):
    """Applies steps to every text, in order.

    Attributes:
        kind: `normalise`.
        steps: `mojibake` undoes UTF-8 read as something else (ftfy); `entities` and `markup` take leftovers of HTML
            away; `nfc` or `nfkc`; `control_characters`; `whitespace` makes ends of lines and blank lines regular;
            `simplified_chinese` turns traditional characters into simplified ones (OpenCC); `emoji_names` spells emoji
            out.
    """

    kind: Literal["normalise"] = "normalise"
    steps: list[StepName] = field(default_factory=lambda: list(DEFAULT_STEPS))

    def __post_init__(self) -> None:
        if not self.steps or {"nfc", "nfkc"} <= set(self.steps):
            raise ValueError(f"steps={self.steps}: name at least one, and one of nfc and nfkc at most.")

    def filter(self, context: Context) -> Filter:
        """The function that normalises.

        Args:
            context: Of the partition.
        """
        steps = [(name, _STEPS[name]()) for name in self.steps]

        def judge(document: Document) -> Verdict:
            text = document.text
            for name, step in steps:
                changed = step(text)
                if changed != text:
                    context.counts[f"changed by {name}"] += 1
                    text = changed
            if not text.strip():
                return Dropped(document, "empty", "nothing left after normalisation")
            return document.with_text(text)

        return judge


def remove_control_characters(text: str) -> str:
    """Text without characters that are not seen.

    Args:
        text: Any.
    """
    return _CONTROL.sub("", text)


def regular_whitespace(text: str) -> str:
    r"""Text with `\n` at the ends of lines, nothing before it, at most one blank line, and ordinary spaces.

    Args:
        text: Any.
    """
    text = _SPACES.sub(" ", _LINE_ENDS.sub("\n", text))
    return _BLANK_LINES.sub("\n\n", _TRAILING.sub("", text)).strip("\n")


def remove_markup(text: str) -> str:
    """Text without HTML tags and comments; other angle brackets stay.

    Args:
        text: Any.
    """
    return _MARKUP.sub("", text) if "<" in text else text


def _mojibake() -> _TextFunction:
    from ftfy import TextFixerConfig, fix_encoding

    config = TextFixerConfig(explain=False)

    def repair(text: str) -> str:
        if text.isascii():
            return text
        lines = text.split("\n")  # by line: one that is wrong is repaired though its neighbours are right
        return "\n".join(line if line.isascii() else fix_encoding(line, config) for line in lines)

    return repair


def _simplified() -> _TextFunction:
    from opencc import OpenCC

    converter = OpenCC("t2s")
    return lambda text: text if text.isascii() else str(converter.convert(text))


def _emoji_names() -> _TextFunction:
    from emoji import demojize

    return lambda text: text if text.isascii() else str(demojize(text))


_STEPS: dict[StepName, Callable[[], _TextFunction]] = {
    "mojibake": _mojibake,
    "entities": lambda: lambda text: html.unescape(text) if "&" in text else text,
    "markup": lambda: remove_markup,
    "nfc": lambda: lambda text: unicodedata.normalize("NFC", text),
    "nfkc": lambda: lambda text: unicodedata.normalize("NFKC", text),
    "control_characters": lambda: remove_control_characters,
    "whitespace": lambda: regular_whitespace,
    "simplified_chinese": _simplified,
    "emoji_names": _emoji_names,
}
