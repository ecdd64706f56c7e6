"""One rollout: prompts answered, answers scored, and what is worth knowing about them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lmstack.data.batch import PromptBatch
from lmstack.generation.engine import GenerationEngine
from lmstack.losses.kl_estimators import estimate_kl
from lmstack.models.likelihood import response_log_probs
from lmstack.models.transformer import Transformer
from lmstack.nn.lora import lora_disabled
from lmstack.rl.across_ranks import AcrossRanks
from lmstack.rl.reward_shaping import RewardShaper
from lmstack.rl.rewards import Sample, WeightedRewards
from lmstack.rl.rollout import Rollout, SamplingConfig, generate_samples


@dataclass
class Collected:
    """A rollout and its story.

    Attributes:
        rollout: What an update learns from.
        metrics: Means over all ranks.
        table: A dictionary for each sample of this rank: prompt, response, rewards, KL divergence, length, stop reason.
    """

    rollout: Rollout
    metrics: dict[str, float]
    table: list[dict[str, Any]]


@dataclass
class Collector:
    """Answers prompts with the policy and scores the answers.

    Attributes:
        engine: Of the policy; its weights are read at every call, so a rollout is never stale.
        reference: Frozen; None is the policy with its adapters off.
        rewards: What a response is worth.
        shaper: What is done to that before it is learnt from.
        sampling: How responses are drawn.
        stop_ids: Tokens that end a response.
        micro_batch_size: Rows scored at once.
        loss_chunk_size: Tokens whose logits exist at once.
        ranks: For numbers over all ranks.
    """

    engine: GenerationEngine
    reference: Transformer | None
    rewards: WeightedRewards
    shaper: RewardShaper
    sampling: SamplingConfig
    stop_ids: tuple[int, ...]
    micro_batch_size: int
    loss_chunk_size: int
    ranks: AcrossRanks

    @torch.no_grad()
    def collect(
        self, batch: PromptBatch, seed: Callable[[int, int], int], *, repeats: int = 1, learns: bool = True
    ) -> Collected:
        """Answer and score.

        Args:
            batch: This rank's prompts.
            seed: Of the random numbers of a prompt's number and a response's.
            repeats: Responses to each prompt, side by side in the rollout.
            learns: Whether scores are shaped, which takes note of them; otherwise they stay as they are.
        """
        prompts = [prompt for prompt in batch.prompts for _ in range(repeats)]
        rows = [row for row in batch.rows for _ in range(repeats)]
        seeds = [seed(number, k) for number in batch.ids.tolist() for k in range(repeats)]
        samples, sampled = generate_samples(self.engine, prompts, rows, seeds, self.sampling, self.stop_ids)
        # A rank may have run out of held-out prompts; what is reduced over ranks must be reduced on it too.
        terms = self.rewards(samples) if samples else {name: torch.zeros(0) for name in self.rewards.functions}
        is_finished = torch.tensor([sample.stop_reason == "stop_id" for sample in samples], dtype=torch.bool)
        raw = self.rewards.total(terms)
        scores = self.shaper(raw, is_finished) if learns else raw
        rollout = Rollout.of(samples, scores, self.ranks.device)
        rollout.old_log_probs = self.in_chunks(rollout, lambda part: self.log_probs(self.engine.transformer, part)[0])
        rollout.ref_log_probs = self.in_chunks(rollout, self.ref_log_probs)
        kl = estimate_kl(rollout.old_log_probs, rollout.ref_log_probs, "k1").sum(1).cpu()
        metrics = self._metrics(rollout, terms, raw, kl, is_finished)
        metrics["rollout/sampler_error"] = self.ranks.max(_largest_difference(rollout, sampled))
        return Collected(rollout, metrics, _table(samples, terms, scores, kl))

    def log_probs(self, transformer: Transformer, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the responses' tokens, and the hidden states they come from.

        Args:
            transformer: The policy or its reference.
            rollout: Some rows of a rollout.
        """
        return response_log_probs(
            transformer,
            rollout.input_ids,
            rollout.labels,
            temperature=self.sampling.temperature,
            chunk_size=self.loss_chunk_size,
        )

    def ref_log_probs(self, rollout: Rollout) -> Float[Tensor, "B T"]:
        """Log-probabilities of the responses' tokens under the reference.

        Args:
            rollout: Some rows of a rollout.
        """
        if self.reference is not None:
            return self.log_probs(self.reference, rollout)[0]
        with lora_disabled(self.engine.transformer):
            return self.log_probs(self.engine.transformer, rollout)[0]

    def in_chunks(self, rollout: Rollout, function: Callable[[Rollout], Tensor]) -> Float[Tensor, "B T"]:
        """A function of rows, a micro-batch at a time.

        Args:
            rollout: All rows.
            function: Gives a number for every slot of some rows.
        """
        out = torch.zeros_like(rollout.old_log_probs)
        if len(rollout) == 0:
            return out
        for rows, part in rollout.split(self.micro_batch_size):
            out[rows, : part.labels.shape[1]] = function(part).float()
        return out

    def _metrics(
        self, rollout: Rollout, terms: dict[str, Tensor], raw: Tensor, kl: Tensor, is_finished: Bool[Tensor, " B"]
    ) -> dict[str, float]:
        num_tokens = rollout.response_mask.sum()
        of_responses = {
            "reward/total": raw,
            "reward/shaped": rollout.scores,
            "reward/square": raw.double().square(),
            "kl/reference": kl,
            "rollout/finished_share": is_finished,
            **{f"reward/{name}": values for name, values in terms.items()},
        }
        count = torch.tensor(float(len(rollout)))
        sums = {name: (values.double().sum(), count) for name, values in of_responses.items()}
        sums["rollout/length"] = (num_tokens, count)
        sums["rollout/entropy"] = (-rollout.old_log_probs.sum(), num_tokens)
        metrics = self.ranks.means(sums)
        variance = metrics.pop("reward/square") - metrics["reward/total"] ** 2
        metrics["reward/std"] = max(variance, 0.0) ** 0.5
        metrics["rollout/responses"] = float(self.ranks.sum(count))
        return metrics


def _table(samples: Sequence[Sample], terms: dict[str, Tensor], scores: Tensor, kl: Tensor) -> list[dict[str, Any]]:
    return [
        {
            "prompt": sample.prompt,
            "response": sample.response,
            **{f"reward/{name}": float(values[i]) for name, values in terms.items()},
            "score": float(scores[i]),
            "kl": float(kl[i]),
            "length": len(sample.response_ids),
            "stop_reason": sample.stop_reason,
        }
        for i, sample in enumerate(samples)
    ]


def _largest_difference(rollout: Rollout, sampled: Sequence[Sequence[float]]) -> float:
    """How far the sampler's log-probabilities are from the scorer's."""
    scored, mask = rollout.old_log_probs.cpu(), rollout.response_mask.cpu()
    rows = zip(scored, mask, sampled, strict=True)
    differences = [row[kept] - torch.tensor(of_row, dtype=row.dtype) for row, kept, of_row in rows]
    return float(torch.cat([torch.zeros(1), *differences]).abs().max())
