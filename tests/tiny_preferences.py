"""Answers to prompts as batches, for tests of reward models and preference optimisation."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from lmstack.data.batch import IGNORE_INDEX, PreferenceBatch
from lmstack.models import Transformer, TransformerConfig, save_weights
from lmstack.optim.optimizers import AdamWConfig
from lmstack.optim.schedules import ConstantSchedule
from tiny_run import VOCAB, tiny_config

Ranking = tuple[list[int], list[list[int]]]
"""A prompt, and its answers, best first."""


def preferences(rankings: Sequence[Ranking], *, width: int | None = None, margin: float = 0.0) -> PreferenceBatch:
    """Every pair of a ranking; the best is wanted, the worst is not."""
    rows = [(prompt, answer) for prompt, answers in rankings for answer in answers]
    num_columns = width or max(len(prompt) + len(answer) for prompt, answer in rows)
    input_ids = torch.zeros((len(rows), num_columns), dtype=torch.long)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    for i, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        input_ids[i, :end] = torch.tensor(prompt + answer)
        labels[i, len(prompt) - 1 : end - 1] = torch.tensor(answer)
    pairs: list[tuple[int, int]] = []
    weights: list[float] = []
    first = 0
    desirability = torch.zeros(len(rows))
    for _, answers in rankings:
        own = list(combinations(range(first, first + len(answers)), 2))
        pairs += own
        weights += [1 / len(own) for _ in own]
        desirability[first], desirability[first + len(answers) - 1] = 1.0, -1.0
        first += len(answers)
    return PreferenceBatch(
        input_ids=input_ids,
        labels=labels,
        lengths=torch.tensor([len(prompt) + len(answer) for prompt, answer in rows]),
        better=torch.tensor([pair[0] for pair in pairs], dtype=torch.long),
        worse=torch.tensor([pair[1] for pair in pairs], dtype=torch.long),
        pair_weight=torch.tensor(weights),
        margin=torch.full((len(pairs),), margin),
        is_tie=torch.zeros(len(pairs), dtype=torch.bool),
        group=torch.tensor([g for g, (_, answers) in enumerate(rankings) for _ in answers]),
        desirability=desirability,
        demonstration=torch.zeros(len(rows), dtype=torch.bool),
    )


def random_rankings(count: int, *, num_answers: int = 3, seed: int = 0) -> list[Ranking]:
    """Prompts of 2 to 5 tokens with answers of 1 to 6."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high + 1, (), generator=generator))
        return torch.randint(VOCAB, (length,), generator=generator).tolist()

    return [(tokens(2, 5), [tokens(1, 6) for _ in range(num_answers)]) for _ in range(count)]


def tiny_weights(folder: Path, seed: int = 7, config: TransformerConfig | None = None) -> str:
    """A folder of weights to start from."""
    torch.manual_seed(seed)
    save_weights(folder, Transformer(config or tiny_config()))
    return str(folder)


def stage_arguments(lr: float = 1e-2, **arguments: Any) -> dict[str, Any]:
    return {"optimizer": AdamWConfig(lr=lr, weight_decay=0.0), "schedule": ConstantSchedule(), **arguments}
