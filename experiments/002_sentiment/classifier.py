"""A linear sentiment classifier on n-grams: one is the reward, another, trained on other reviews, is the judge.

`reward_en` and `reward_zh` are reward functions for lmstack: `path: experiments/002_sentiment/classifier.py:reward_en`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from lmstack.rl.rewards import Sample

DATA = Path("data/sentiment")
DECAY = 1e-5  # of 1e-3 to 3e-6, by a fifth of the reward's half in each language
MOST_LOG_ODDS = 4.0  # the reward saturates where the classifier has made up its mind


def features(text: str, language: str) -> set[str]:
    """Words and pairs of words; of Chinese, stretches of one to three characters."""
    units = text.lower().split() if language == "en" else list("".join(text.split()))
    longest = 2 if language == "en" else 3
    return {" ".join(units[i : i + n]) for n in range(1, longest + 1) for i in range(len(units) - n + 1)}


@dataclass
class Classifier:
    language: str
    vocabulary: dict[str, int]
    weight: torch.Tensor

    @classmethod
    def train(cls, texts: Sequence[str], labels: Sequence[int], language: str, decay: float = DECAY) -> "Classifier":
        """Logistic regression with an L2 penalty on features that occur twice, by full-batch L-BFGS."""
        counts: dict[str, int] = {}
        bags = [features(text, language) for text in texts]
        for bag in bags:
            for feature in bag:
                counts[feature] = counts.get(feature, 0) + 1
        vocabulary = {f: i for i, f in enumerate(sorted(f for f, n in counts.items() if n >= 2))}
        model = cls(language, vocabulary, torch.zeros(len(vocabulary) + 1, requires_grad=True))
        inputs, wanted = model._matrix(bags), torch.tensor(labels, dtype=torch.float32)
        optimizer = torch.optim.LBFGS([model.weight], max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            logits = torch.sparse.mm(inputs, model.weight[:, None])[:, 0]
            loss = F.binary_cross_entropy_with_logits(logits, wanted) + decay * model.weight[:-1].square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        model.weight = model.weight.detach()
        return model

    def log_odds(self, texts: Sequence[str]) -> torch.Tensor:
        """Of being positive."""
        bags = [features(text, self.language) for text in texts]
        return torch.sparse.mm(self._matrix(bags), self.weight[:, None])[:, 0]

    def _matrix(self, bags: Sequence[set[str]]) -> torch.Tensor:
        """A row a text: 1 / sqrt(number of features) at each feature, and 1 for the bias."""
        rows, columns, values = [], [], []
        for row, bag in enumerate(bags):
            known = sorted(self.vocabulary[f] for f in bag if f in self.vocabulary)
            rows += [row] * (len(known) + 1)
            columns += [*known, len(self.vocabulary)]
            values += [max(1, len(known)) ** -0.5] * len(known) + [1.0]
        indices = torch.tensor([rows, columns])
        size = (len(bags), len(self.vocabulary) + 1)
        return torch.sparse_coo_tensor(indices, values, size, check_invariants=False).coalesce()


def load(language: str, name: str) -> Classifier:
    state = torch.load(DATA / language / f"{name}.pt")
    return Classifier(language, state["vocabulary"], state["weight"])


@lru_cache
def _reward_classifier(language: str) -> Classifier:
    return load(language, "reward")


def _reward(samples: "Sequence[Sample]", language: str) -> list[float]:
    log_odds = _reward_classifier(language).log_odds([sample.prompt + sample.response for sample in samples])
    return log_odds.clamp(-MOST_LOG_ODDS, MOST_LOG_ODDS).tolist()


def reward_en(samples: "Sequence[Sample]") -> list[float]:
    return _reward(samples, "en")


def reward_zh(samples: "Sequence[Sample]") -> list[float]:
    return _reward(samples, "zh")
