"""What a bag of words gets right of the same comparisons: logistic regression on differences of hashed word counts.

python experiments/003_real_data/baseline.py
"""

import json
import re
import zlib
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

DATA = Path("data/real")
NUM_FEATURES = 1 << 14
DECAYS = (1e-3, 1e-2, 1e-1)  # chosen on a fifth of the training prompts


def counts(text: str) -> torch.Tensor:
    """log(1 + occurrences) of hashed words and pairs of words."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    vector = torch.zeros(NUM_FEATURES)
    for gram in [*words, *map(" ".join, pairwise(words))]:
        vector[zlib.crc32(gram.encode()) % NUM_FEATURES] += 1
    return vector.log1p()


def differences(row: dict[str, Any]) -> list[torch.Tensor]:
    """Of every pair of answers, the better one's features less the worse one's."""
    answers, scores = (row["answers"], row["scores"]) if "answers" in row else (row["text"], row["score"])
    vectors = [counts(re.split(r"\n\nAssistant:", answer)[-1]) for answer in answers]
    pairs = combinations(range(len(answers)), 2)
    ordered = [(i, j) if scores[i] > scores[j] else (j, i) for i, j in pairs if scores[i] != scores[j]]
    return [vectors[i] - vectors[j] for i, j in ordered]


def fit(rows: torch.Tensor, decay: float) -> torch.Tensor:
    weight = torch.zeros(NUM_FEATURES, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.softplus(-rows @ weight).mean() + decay * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach()


def read(name: str, side: str) -> list[list[torch.Tensor]]:
    lines = (DATA / f"{name}_{side}.jsonl").read_text(encoding="utf-8").splitlines()
    return [differences(json.loads(line)) for line in lines]


def stacked(prompts: list[list[torch.Tensor]]) -> torch.Tensor:
    return torch.stack([pair for pairs in prompts for pair in pairs])


def accuracy(rows: torch.Tensor, weight: torch.Tensor) -> float:
    return float(((rows @ weight) > 0).float().mean())


if __name__ == "__main__":
    for name in ("helpful", "questions"):
        train, validation = read(name, "train"), stacked(read(name, "validation"))
        fifth = len(train) // 5
        own, tuning = stacked(train[fifth:]), stacked(train[:fifth])
        best = max(DECAYS, key=lambda decay: accuracy(tuning, fit(own, decay)))
        weight = fit(stacked(train), best)
        print(
            f"{name}: bag of words {accuracy(validation, weight):.3f} of {len(validation)} held-out pairs, decay {best}"
        )
