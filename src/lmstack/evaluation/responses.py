"""Answers of several models to the same prompts, scored and compared."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from lmstack.generation.engine import GenerationEngine
from lmstack.generation.request import SamplingParams
from lmstack.models.checkpoint import load_transformer, load_weights_grown
from lmstack.models.heads import ScoringTransformer
from lmstack.models.transformer import Transformer

BATCH_SIZE = 64
_WORD_EDGES = ".,;:!?()[]{}'\"`"


@dataclass(frozen=True)
class Answer:
    """A response to one prompt.

    Attributes:
        text: Without the token that ended it.
        token_ids: With it.
        is_finished: Whether it ended of its own accord.
    """

    text: str
    token_ids: list[int]
    is_finished: bool


@dataclass(frozen=True)
class WinRate:
    """How often one side's score is above the other's.

    Attributes:
        rate: Wins, and half of the ties, over prompts.
        low: Lower end of the 95 % interval over prompts (normal approximation).
        high: Its upper end.
        num_prompts: Compared.
    """

    rate: float
    low: float
    high: float
    num_prompts: int


def answer_prompts(
    model: str | Path,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    stop_ids: tuple[int, ...],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int = 0,
) -> list[Answer]:
    """Answers of a model; the random numbers of a prompt are the same for every model.

    Args:
        model: A run, checkpoint, weights or Hugging Face folder.
        tokenizer: That of the prompts.
        prompts: Token ids.
        stop_ids: Tokens that end an answer.
        max_new_tokens: Longest answer in tokens.
        temperature: Of sampling; 0 is greedy.
        seed: Another seed is another draw.
    """
    transformer = _with_vocabulary(load_transformer(model), tokenizer.vocab_size)
    engine = GenerationEngine(transformer, tokenizer)
    answers: list[Answer] = []
    for begin in range(0, len(prompts), BATCH_SIZE):
        chunk = prompts[begin : begin + BATCH_SIZE]
        params = [
            SamplingParams(
                max_new_tokens, temperature=temperature, stop_ids=stop_ids, seed=seed * 1_000_003 + begin + i
            )
            for i in range(len(chunk))
        ]
        for completion in engine.generate(chunk, params):
            answers.append(Answer(completion.text, completion.token_ids, completion.stop_reason == "stop_id"))
    return answers


@torch.no_grad()
def score_answers(
    scorer: ScoringTransformer, prompts: Sequence[Sequence[int]], answers: Sequence[Answer]
) -> Float[np.ndarray, " N"]:
    """A reward model's scores of answers.

    Args:
        scorer: The reward model.
        prompts: Token ids.
        answers: One for each.
    """
    scorer.eval()
    longest = scorer.transformer.config.max_seq_len
    scores: list[float] = []
    for begin in range(0, len(prompts), BATCH_SIZE):
        pairs = zip(prompts[begin : begin + BATCH_SIZE], answers[begin : begin + BATCH_SIZE], strict=True)
        rows = [[*prompt, *answer.token_ids][:longest] for prompt, answer in pairs]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        scores += scorer.scores(ids, torch.tensor([len(row) for row in rows])).tolist()
    return np.array(scores)


def win_rate(scores: Float[np.ndarray, " N"], others: Float[np.ndarray, " N"]) -> WinRate:
    """How often `scores` are above `others`.

    Args:
        scores: Of one model's answers.
        others: Of another's to the same prompts.
    """
    wins = (scores > others) + 0.5 * (scores == others)
    rate, half = float(wins.mean()), float(1.96 * wins.std() / np.sqrt(len(wins)))
    return WinRate(rate, max(0.0, rate - half), min(1.0, rate + half), len(wins))


def word_f1(text: str, reference: str) -> float:
    """Overlap of words, the harmonic mean of precision and recall (Rajpurkar et al. 2016, arXiv:1606.05250, sec. 6.1).

    Args:
        text: The answer.
        reference: What it should say.
    """
    words, wanted = (Counter(_words(part)) for part in (text, reference))
    shared = sum((words & wanted).values())
    return 2.0 * shared / (words.total() + wanted.total()) if shared else 0.0


def distinct_ngrams(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams of words over all n-grams: diversity (Li et al. 2016, arXiv:1510.03055, section 5).

    Args:
        texts: All answers together.
        n: Words of an n-gram.
    """
    grams = [tuple(words[i : i + n]) for words in map(_words, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _with_vocabulary(transformer: Transformer, vocab_size: int) -> Transformer:
    """A base model knows no chat tokens: they get the mean of what it knows, as they do when fine-tuning starts."""
    if transformer.config.vocab_size >= vocab_size:
        return transformer
    grown = Transformer(replace(transformer.config, vocab_size=vocab_size))
    load_weights_grown(grown, transformer.state_dict())
    return grown


def _words(text: str) -> list[str]:
    return [word.strip(_WORD_EDGES).casefold() for word in text.split() if word.strip(_WORD_EDGES)]


Rule = Callable[[str, dict[str, Any]], float]
"""An answer's text and its prompt's record in, a number out: more is better."""


def answer_overlap(text: str, row: dict[str, Any]) -> float:
    """`word_f1` with the record's `answer`.

    Args:
        text: The answer.
        row: The prompt's record.
    """
    return word_f1(text, str(row["answer"]))
