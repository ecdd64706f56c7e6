"""A trained reward model as a reward function."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from lmstack.models.checkpoint import weights_folder
from lmstack.models.heads import ScoringTransformer, load_scorer
from lmstack.rl.rewards import Sample
from lmstack.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True)
class RewardModelReward:
    """The score of a reward model at the last token of the response.

    Attributes:
        path: Run or checkpoint folder of stage `reward_model`.
        weight: Factor on this reward.
        batch_size: Responses scored at once.
    """

    path: str
    weight: float = 1.0
    batch_size: int = 64
    kind: Literal["reward_model"] = "reward_model"

    def load(self, tokenizer: Tokenizer | None, device: torch.device) -> "RewardModelScorer":
        """Read the model.

        Args:
            tokenizer: The policy's; None when ids have no text.
            device: Where it goes.

        Raises:
            ValueError: There is no reward model, or it was trained with another tokenizer.
        """
        folder = weights_folder(self.path)
        if tokenizer is not None and (folder / "tokenizer").is_dir():
            theirs = Tokenizer.load(folder / "tokenizer")
            if theirs.fingerprint != tokenizer.fingerprint:
                raise ValueError(
                    f"rewards.path={self.path!r}: the reward model was trained with another tokenizer "
                    f"({theirs.vocab_size} tokens, fingerprint {theirs.fingerprint[:12]}) than the policy's "
                    f"({tokenizer.vocab_size}, {tokenizer.fingerprint[:12]}). Train it from the same base model."
                )
        return RewardModelScorer(load_scorer(folder, device=device), self.batch_size)


class RewardModelScorer:
    """Scores samples with a frozen reward model, on their token ids: nothing is tokenized again.

    Args:
        scorer: The model; put into evaluation mode.
        batch_size: Responses scored at once.
    """

    def __init__(self, scorer: ScoringTransformer, batch_size: int) -> None:
        self.scorer = scorer.eval().requires_grad_(False)
        self.batch_size = batch_size

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """The score of each sample.

        Args:
            samples: With at least one token each.

        Raises:
            ValueError: A sample is longer than the reward model's context.
        """
        longest = self.scorer.transformer.config.max_seq_len
        order = sorted(range(len(samples)), key=lambda i: len(samples[i].prompt_ids) + len(samples[i].response_ids))
        scores = [0.0] * len(samples)
        for begin in range(0, len(order), self.batch_size):
            chunk = order[begin : begin + self.batch_size]
            rows = [samples[i].prompt_ids + samples[i].response_ids for i in chunk]
            width = max(map(len, rows))
            if width > longest:
                raise ValueError(
                    f"a response with its prompt has {width} tokens, the reward model reads {longest}: lower "
                    "data.max_prompt_tokens or model.sampling.max_new_tokens"
                )
            device = self.scorer.score_head.weight.device
            ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
            lengths = torch.tensor([len(row) for row in rows], device=device)
            with torch.no_grad():
                values = self.scorer.scores(ids, lengths).tolist()
            for i, value in zip(chunk, values, strict=True):
                scores[i] = value
        return scores
