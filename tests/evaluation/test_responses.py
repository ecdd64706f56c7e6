"""Scores of answers, by hand and against one answer at a time."""

import numpy as np
import pytest
import torch

from lmstack.evaluation.responses import Answer, distinct_ngrams, score_answers, win_rate, word_f1
from lmstack.models import Transformer
from lmstack.models.heads import ScoringTransformer
from tiny_run import tiny_config


def test_word_f1_by_hand() -> None:
    assert word_f1("Return the name.", "return a name") == pytest.approx(2 * 2 / (3 + 3))
    assert word_f1("the the the", "the end") == pytest.approx(2 * 1 / (3 + 2))  # a word counts as often as it is there
    assert word_f1("", "x") == 0.0
    assert word_f1("y", "x") == 0.0
    assert word_f1("X!", "x") == 1.0


def test_win_rate_counts_ties_half() -> None:
    result = win_rate(np.array([1.0, 2.0, 3.0, 0.0]), np.array([0.0, 2.0, 1.0, 1.0]))
    assert result.rate == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert result.low < result.rate < result.high
    assert result.num_prompts == 4


def test_distinct_ngrams_by_hand() -> None:
    assert distinct_ngrams(["a b a b", "a b"], 2) == pytest.approx(2 / 4)
    assert distinct_ngrams(["a"], 2) == 0.0


def test_padding_does_not_change_a_score() -> None:
    torch.manual_seed(0)
    scorer = ScoringTransformer(Transformer(tiny_config()))
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8]]
    answers = [Answer("", [9, 10, 11], True), Answer("", [12], True), Answer("", [13, 14], False)]
    together = score_answers(scorer, prompts, answers)
    alone = [score_answers(scorer, [p], [a])[0] for p, a in zip(prompts, answers, strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    last = scorer(torch.tensor([[1, 2, 3, 9, 10, 11]]))[0, -1]
    assert together[0] == pytest.approx(last.item(), abs=1e-6)
