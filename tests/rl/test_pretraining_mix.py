"""Pretraining text beside policy updates."""

import random

import pytest
import torch

from lmstack.data.rank import Rank
from lmstack.rl.pretraining_mix import PretrainingMix, PretrainingStream
from tiny_corpus import tiny_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    letters = random.Random(0)
    texts = {
        name: ["".join(letters.choices("abcdefgh ", k=30)) for _ in range(count)]
        for name, count in (("a", 20), ("b", 9))
    }
    return str(tiny_corpus(tmp_path_factory.mktemp("corpus"), texts, {}))


def mix(corpus: str, **changes: int | float) -> PretrainingMix:
    arguments = {"sequence_length": 12, "rows_per_step": 4, "micro_batch_size": 2}
    return PretrainingMix(corpus, **(arguments | changes))  # type: ignore[arg-type]


def rows(stream: PretrainingStream, step: int) -> list[list[int]]:
    return torch.cat([batch.input_ids for batch in stream.micro_batches(step)]).tolist()


def test_a_step_s_rows_are_a_function_of_its_number(corpus: str) -> None:
    one, other = (PretrainingStream(mix(corpus), Rank()) for _ in range(2))
    steps = [rows(one, step) for step in range(6)]
    assert [rows(other, step) for step in reversed(range(6))] == steps[::-1]
    flat = [tuple(row) for step in steps for row in step]
    assert len(flat) == 24
    assert len(set(flat)) == 24  # the corpus has more rows than that
    assert rows(one, 1000)  # and it never ends
    assert rows(PretrainingStream(mix(corpus, seed=1), Rank()), 0) != steps[0]


def test_a_step_comes_in_micro_batches(corpus: str) -> None:
    batches = PretrainingStream(mix(corpus), Rank()).micro_batches(3)
    assert [tuple(batch.input_ids.shape) for batch in batches] == [(2, 12), (2, 12)]
    assert all(batch.num_supervised > 0 for batch in batches)


def test_ranks_share_the_rows_of_a_step(corpus: str) -> None:
    whole = rows(PretrainingStream(mix(corpus), Rank()), 2)
    parts = [rows(PretrainingStream(mix(corpus), Rank(index, 2)), 2) for index in range(2)]
    assert parts[0] + parts[1] == whole


def test_what_does_not_fit_is_refused(corpus: str) -> None:
    with pytest.raises(ValueError, match="rows_per_step=5 is not a multiple of micro_batch_size=2"):
        mix(corpus, rows_per_step=5)
    with pytest.raises(ValueError, match=r"coef=0\.0: must be above 0; set pretraining_mix=null"):
        mix(corpus, coef=0.0)
    with pytest.raises(ValueError, match="micro_batch_size=2 x 4 ranks"):
        PretrainingStream(mix(corpus), Rank(0, 4))
    with pytest.raises(ValueError, match="nowhere"):
        PretrainingStream(mix(corpus + "/nowhere"), Rank())
