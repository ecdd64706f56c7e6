"""Spans of words: united where n-grams overlap, cut without joining words."""

import numpy as np

from lmstack.prep.ngrams import split_words
from lmstack.prep.spans import cut_spans, marked_spans


def test_ngrams_that_overlap_or_touch_are_one_span() -> None:
    is_marked = np.array([1, 1, 0, 0, 1, 0, 0, 0, 1], dtype=bool)
    assert marked_spans(is_marked, 3) == [(0, 7), (8, 11)]
    assert marked_spans(np.zeros(4, dtype=bool), 3) == []


def test_words_on_both_sides_of_a_cut_stay_apart() -> None:
    text = "一二三四 one, two three!"
    words = split_words([text])
    assert cut_spans(text, words, [(1, 3)]) == "一\n四 one, two three!"
    assert cut_spans(text, words, [(0, 4), (5, 7)]) == "one,\n!"
