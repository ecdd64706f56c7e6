"""Stretches of words in a text, and the text without them."""

import numpy as np
from numpy.typing import NDArray

from lmstack.prep.ngrams import Words

Spans = list[tuple[int, int]]


def marked_spans(is_marked: NDArray[np.bool_], ngram: int) -> Spans:
    """The stretches of words that marked n-grams cover, first word and one past the last.

    Args:
        is_marked: Of the n-gram at each word.
        ngram: Words of an n-gram.
    """
    spans: Spans = []
    for start in np.flatnonzero(is_marked).tolist():
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], start + ngram)
        else:
            spans.append((start, start + ngram))
    return spans


def cut_spans(text: str, words: Words, spans: Spans) -> str:
    """The text without some stretches of words; the words on both sides of a cut stay apart.

    Args:
        text: One text.
        words: Of it alone.
        spans: Stretches of words in order, one or more, which do not touch.
    """
    before, place = [], 0
    for start, stop in spans:
        before.append(text[place : words.starts[start]].rstrip())
        place = int(words.stops[stop - 1])
    parts = [before[0], *(part.lstrip() for part in (*before[1:], text[place:]))]
    return "\n".join(part for part in parts if part)
