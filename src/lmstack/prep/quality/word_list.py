"""Documents with too many words of a list, such as one of obscenities."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from lmstack.prep.document import Document
from lmstack.prep.quality.rules import Measure, judge
from lmstack.prep.quality.units import count_units, share
from lmstack.prep.stage import Context, Filter, StageSettings

_CJK = re.compile("[\u3400-\u9fff]")


@dataclass(frozen=True, kw_only=True)
class WordList(StageSettings):
    """Drops documents in which words of a list are frequent.

    Attributes:
        kind: `word_list`.
        file: A word or phrase a line, UTF-8; lines that begin with # are comments. Words of an alphabet are found as
            whole words, Chinese ones anywhere; case does not matter.
        max_share: Largest share of the words (or characters, in Chinese) of a document. C4 drops at the first one: 0.
    """

    kind: Literal["word_list"] = "word_list"
    file: str
    max_share: float = 0.0

    def filter(self, context: Context) -> Filter:
        """The function that judges.

        Args:
            context: Of the partition.

        Raises:
            ValueError: The file cannot be read or is empty.
        """
        pattern = self._pattern

        def measures(document: Document) -> Iterator[Measure]:
            found = sum(1 for _ in pattern.finditer(document.text.lower()))
            if found:
                of_all = share(found, count_units(document.text, "characters"))
                yield Measure("words of the list", of_all, high=self.max_share)

        return lambda document: judge(document, measures(document))

    def input_files(self) -> list[Path]:
        """The list."""
        return [Path(self.file)]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return _read_pattern(self.file)


def _read_pattern(file: str) -> re.Pattern[str]:
    try:
        lines = Path(file).read_text(encoding="utf-8").lower().splitlines()
    except OSError as error:
        raise ValueError(f"The word list {file} cannot be read: {error}. Check word_list.file.") from None
    words = sorted({line.strip() for line in lines if line.strip() and not line.startswith("#")}, key=len, reverse=True)
    if not words:
        raise ValueError(f"The word list {file} is empty. Write a word a line, or drop the stage.")
    parts = [re.escape(word) if _CJK.search(word) else rf"(?<!\w){re.escape(word)}(?!\w)" for word in words]
    return re.compile("|".join(parts))
