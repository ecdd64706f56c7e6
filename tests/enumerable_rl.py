"""Tasks of several tokens and an ending whose every response can be listed: exact objective, exact optimum."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from lmstack.rl.rewards import Sample
from lmstack.stages.ppo import PPO, SeparateCritic
from tiny_rl import FIRST_ACTION as BANDIT_ACTION
from tiny_rl import bandit_arguments, bandit_config, mask_all_but

EOS, FIRST_ACTION, NUM_ACTIONS = 10, 4, 6
ALLOWED = range(FIRST_ACTION, EOS + 1)
KL_COEF, MISSING_EOS_PENALTY = 0.1, 0.5
_TABLE = torch.rand(8, NUM_ACTIONS + 1, generator=torch.Generator().manual_seed(11)).tolist()


def word_reward(prompt: Sequence[int], response: Sequence[int]) -> float:
    """What each letter is worth to the prompt, less 0.4 for a letter said twice in a row."""
    letters = [token - FIRST_ACTION for token in response if token != EOS]
    repeats = sum(a == b for a, b in pairwise(letters))
    return sum(_TABLE[prompt[0]][letter] for letter in letters) / 2 - 0.4 * repeats


def ragged_reward(prompt: Sequence[int], response: Sequence[int]) -> float:
    """The same, where the prompt's last token and its length say together what letters are worth."""
    return word_reward([(prompt[-1] + len(prompt)) % len(_TABLE)], response)


def word_rewards(samples: Sequence[Sample]) -> list[float]:
    return [word_reward(sample.prompt_ids, sample.response_ids) for sample in samples]


def ragged_rewards(samples: Sequence[Sample]) -> list[float]:
    return [ragged_reward(sample.prompt_ids, sample.response_ids) for sample in samples]


def two_actions(samples: Sequence[Sample]) -> list[float]:
    """The first of the bandit's actions is better: by 1 for prompt 0, by 0.1 for prompt 1."""
    gaps = (1.0, 0.1)
    return [gaps[s.prompt_ids[0]] * float(s.response_ids[0] == BANDIT_ACTION) for s in samples]


@dataclass(frozen=True)
class Task:
    """Prompts, and what a response to one is worth."""

    name: str
    prompts: list[list[int]]
    max_new_tokens: int
    reward: Callable[[Sequence[int], Sequence[int]], float]

    def responses(self) -> list[list[int]]:
        """Every response that can be sampled: ended by EOS, or cut at the limit."""
        finished: list[list[int]] = []
        unfinished: list[list[int]] = [[]]
        for _ in range(self.max_new_tokens):
            longer = [[*begun, token] for begun in unfinished for token in ALLOWED]
            finished += [response for response in longer if response[-1] == EOS]
            unfinished = [response for response in longer if response[-1] != EOS]
        return finished + unfinished

    def scores(self) -> torch.Tensor:
        """Reward less the penalty for a cut response, by prompt and response."""
        return torch.tensor(
            [
                [self.reward(p, r) - (0.0 if r[-1] == EOS else MISSING_EOS_PENALTY) for r in self.responses()]
                for p in self.prompts
            ],
            dtype=torch.float64,
        )

    @torch.no_grad()
    def log_probs(self, policy: Any) -> torch.Tensor:
        """Of every response to every prompt, from all logits."""
        found = []
        for prompt in self.prompts:
            rows = []
            for response in self.responses():
                rows.append(prompt + response + [0] * (self.max_new_tokens - len(response)))
            ids = torch.tensor(rows)
            step = policy.logits(policy(ids)).double().log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
            lengths = torch.tensor([len(response) for response in self.responses()])
            of_response = torch.arange(self.max_new_tokens) < lengths[:, None]
            found.append(torch.where(of_response, step[:, len(prompt) - 1 :], 0.0).sum(1))
        return torch.stack(found)

    def objective(self, policy: Any, reference: Any) -> float:
        """E[score] - KL_COEF KL(policy || reference), averaged over prompts."""
        log_probs, ref = self.log_probs(policy), self.log_probs(reference)
        return float((log_probs.exp() * (self.scores() - KL_COEF * (log_probs - ref))).sum(1).mean())

    def optimum(self, reference: Any) -> float:
        """Reached by the reference times exp(score / KL_COEF): KL_COEF times the logarithm of its normaliser."""
        return float((KL_COEF * (self.log_probs(reference) + self.scores() / KL_COEF).logsumexp(1)).mean())

    def rollouts(self, num_updates: int, per_update: int) -> list[list[list[int]]]:
        return [[self.prompts[i % len(self.prompts)] for i in range(per_update)] for _ in range(num_updates)]


WORDS = Task("word", [[0], [1], [2], [3]], 3, word_reward)
RAGGED = Task("ragged", [[0], [3, 2], [2, 1, 3], [0, 1, 2, 3]], 3, ragged_reward)


def enumerable_ppo(seed: int = 0, **changes: Any) -> PPO:
    torch.manual_seed(seed)
    arguments = bandit_arguments(critic=SeparateCritic(), transformer=bandit_config())
    stage = PPO(**(arguments | changes))
    mask_all_but(stage.transformer, ALLOWED)
    return stage
