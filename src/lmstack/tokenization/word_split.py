"""Words that no token crosses: how text in English, Chinese and code is cut before pairs are counted."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class WordSplit:
    r"""Where text is cut. Nothing is lost: the words together are the text.

    Text without Chinese characters is cut as GPT-4 does: a word takes its leading space, an indentation is one word but
    for the space before what follows, and line breaks join the punctuation before them. A run of Chinese characters
    (`\p{Han}`) is cut from the letters, digits and spaces around it.

    Attributes:
        max_digits: Most digits in a word, counted from the left; 1 makes every digit a token.
        chinese: `words` lets a token hold several Chinese characters, `characters` one at most.
    """

    max_digits: int = 3
    chinese: Literal["words", "characters"] = "words"

    def __post_init__(self) -> None:
        """Check the range."""
        if self.max_digits < 1:
            raise ValueError(f"max_digits={self.max_digits}: must be 1 or more.")

    @property
    def pattern(self) -> str:
        """The regular expression of a word, in the language of Oniguruma."""
        return (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
            rf"|\p{{Han}}{'+' if self.chinese == 'words' else ''}"
            r"|[^\r\n\p{L}\p{M}\p{N}]?[[\p{L}\p{M}]&&[^\p{Han}]]+"
            rf"|\p{{N}}{{1,{self.max_digits}}}"
            r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"
        )


DEFAULT_SPLIT = WordSplit()
