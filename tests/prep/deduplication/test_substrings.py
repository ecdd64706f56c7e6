"""Repeated runs of words against a search of all runs by brute force."""

import itertools
import random
from pathlib import Path

import pytest

from corpus_stages import run_stage, web
from lmstack.prep.deduplication.substrings import RepeatedSubstrings
from lmstack.prep.document import Document, Dropped


def _kept_words(texts: list[str], n: int) -> list[list[str]]:
    """Words outside every run of n words that came before, in an earlier document or place."""
    seen: set[tuple[str, ...]] = set()
    kept = []
    for text in texts:
        words = text.split()
        gone: set[int] = set()
        for start in range(len(words) - n + 1):
            window = tuple(words[start : start + n])
            gone |= set(range(start, start + n)) if window in seen else set()
            seen.add(window)
        kept.append([word for place, word in enumerate(words) if place not in gone])
    return kept


def _texts(seed: int) -> list[str]:
    """Random words with runs copied from the texts before."""
    draw = random.Random(seed)
    texts: list[list[str]] = []
    for _ in range(40):
        words = [f"w{draw.randrange(3000)}" for _ in range(draw.randint(10, 80))]
        for _ in range(draw.randint(0, 2) if texts else 0):
            other = draw.choice(texts)
            start = draw.randrange(len(other))
            place = draw.randrange(len(words))
            words[place:place] = other[start : start + draw.randint(5, 30)]
        texts.append(words)
    return [" ".join(words) for words in texts]


@pytest.mark.parametrize("cuts", [[], [1], [10, 10, 25]])
def test_what_is_left_agrees_with_brute_force(cuts: list[int], tmp_path: Path) -> None:
    texts = _texts(0)
    documents = web(texts)
    limits = [0, *cuts, len(documents)]
    partitions = [documents[start:stop] for start, stop in itertools.pairwise(limits)]
    verdicts, contexts = run_stage(RepeatedSubstrings(num_words=10), partitions, tmp_path / "run")
    left = [verdict.text.split() if isinstance(verdict, Document) else [] for verdict in verdicts.values()]
    expected = _kept_words(texts, 10)
    assert left == expected
    num_cut = sum(context.counts["words in repeated passages"] for context in contexts)
    assert num_cut == sum(len(text.split()) for text in texts) - sum(map(len, expected)) > 0


def test_a_copy_is_dropped_when_nothing_is_left(tmp_path: Path) -> None:
    text = " ".join(f"w{number}" for number in range(20))
    verdicts, _ = run_stage(RepeatedSubstrings(num_words=10), [web([text, f"« {text} »"])], tmp_path / "run")
    assert isinstance(verdicts["0000"], Document)
    assert isinstance(verdicts["0001"], Dropped)
    assert verdicts["0001"].detail == "0 of 20 words are left"


def test_text_around_a_cut_stays_as_it_was(tmp_path: Path) -> None:
    run = "the very same ten words, in the very same order"
    documents = web([f"{run}.", f"  Indented:\n\tone -- {run} -- two\n"])
    verdicts, _ = run_stage(RepeatedSubstrings(num_words=10), [documents], tmp_path / "run")
    assert verdicts["0001"].text == "  Indented:\n\tone --\n-- two\n"


def test_short_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="num_words=3"):
        RepeatedSubstrings(num_words=3)
