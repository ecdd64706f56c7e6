"""The stage that cuts long runs of words found elsewhere, whatever stands around them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lmstack.prep.deduplication.repeats import PieceCounts, Repeats, write_repeats
from lmstack.prep.document import Document, Dropped, Verdict
from lmstack.prep.ngrams import batches, ngram_hashes, split_words
from lmstack.prep.spans import cut_spans, marked_spans
from lmstack.prep.stage import Context, Filter, StageSettings

REASON = "only repeated passages"


@dataclass(frozen=True, kw_only=True)
class RepeatedSubstrings(StageSettings):
    """Cut every run of words, `num_words` or longer, that has come before in the corpus.

    ExactSubstr of arXiv:2107.06499, section 4.1, with words (and Chinese characters) for tokens. Instead of a suffix
    array, the hashes of all windows of `num_words` words are counted: a run is repeated where all its windows are.

    Attributes:
        kind: `repeated_substrings`.
        num_words: Length of the shortest run that is cut; 50 tokens in the paper.
        min_words: A document of which fewer words are left is dropped.
    """

    kind: Literal["repeated_substrings"] = "repeated_substrings"
    num_words: int = 50
    min_words: int = 1

    def __post_init__(self) -> None:
        if self.num_words < 8:
            raise ValueError(f"num_words={self.num_words} would cut phrases. Use 8 or more; 50 is usual.")

    def survey(self, documents: Iterable[Document], file: Path) -> None:
        """Count the windows of a partition.

        Args:
            documents: Of the partition.
            file: To write.
        """
        counts = PieceCounts()
        for batch in batches(documents):
            words = split_words([document.text for document in batch])
            hashes, offsets = ngram_hashes(words, self.num_words)
            is_whole = np.repeat(words.num_words() >= self.num_words, np.diff(offsets))
            counts.add(hashes[is_whole])
        counts.write(file)

    def decide(self, surveys: Sequence[Path], folder: Path) -> None:
        """Write which windows come twice.

        Args:
            surveys: Of the partitions, in order.
            folder: For the decisions.
        """
        write_repeats(surveys, folder, min_count=2)

    def filter(self, context: Context) -> Filter:
        """The cutter of a partition's documents; `context.counts` learns how much was cut.

        Args:
            context: Of the partition.
        """
        repeats = Repeats(context.folder, context.partition)

        def cut(document: Document) -> Verdict:
            words = split_words([document.text])
            num_words = len(words.hashes)
            if num_words < self.num_words:
                return document
            is_repeat, is_first = repeats.find(ngram_hashes(words, self.num_words)[0])
            spans = marked_spans(is_repeat & ~is_first, self.num_words)
            if not spans:
                return document
            num_cut = sum(stop - start for start, stop in spans)
            context.counts["repeated passages cut"] += len(spans)
            context.counts["words in repeated passages"] += num_cut
            if num_words - num_cut < self.min_words:
                return Dropped(document, REASON, f"{num_words - num_cut} of {num_words} words are left")
            return document.with_text(cut_spans(document.text, words, spans))

        return cut
