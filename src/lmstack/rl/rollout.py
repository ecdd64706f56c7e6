"""Responses of the policy with everything that is known about them: what an update learns from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lmstack.generation.engine import GenerationEngine
from lmstack.generation.request import SamplingParams
from lmstack.losses.reduction import IGNORE_INDEX
from lmstack.models.heads import ScoringTransformer
from lmstack.rl.rewards import Sample


@dataclass(frozen=True)
class SamplingConfig:
    """How responses are drawn. What the policy is trained on is exactly what it was sampled from: no truncation of its
    distribution is offered (top-k, top-p, least length), for which a ratio of probabilities would be wrong.

    Attributes:
        max_new_tokens: Longest response in tokens, its end included.
        temperature: Divisor of the logits, in sampling and in scoring alike.
        batch_size: Responses generated at once on a device; None takes all.
    """

    max_new_tokens: int
    temperature: float = 1.0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.temperature > 0.0:
            raise ValueError(
                f"sampling.temperature={self.temperature}: must be above 0, or there is nothing to explore. 1 is usual."
            )
        if self.max_new_tokens < 1 or (self.batch_size is not None and self.batch_size < 1):
            raise ValueError("sampling.max_new_tokens and sampling.batch_size must be at least 1.")


@dataclass
class Rollout:
    """Prompts and responses, padded on the right, one row each; tensors only.

    Slot t of a row is about the token at t + 1: its label, its probability, its reward, and the value of what came
    before it. Slots outside of the response are 0.

    Attributes:
        input_ids: Prompt and response.
        labels: The response's token that follows each position, `IGNORE_INDEX` outside of the response.
        lengths: Tokens of prompt and response; 0 for a row that is there only for its shape.
        scores: What each response is worth, before any penalty.
        old_log_probs: Of the response's tokens under the policy that sampled them, in nats.
        ref_log_probs: The same under the reference.
        values: The critic's at sampling time; 0 without a critic.
        advantages: How much better each token was than expected.
        returns: What the critic should have said.
        row_weights: Factor of a row in a mean over rows; 0 leaves it out.
    """

    input_ids: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    lengths: Int[Tensor, " B"]
    scores: Float[Tensor, " B"]
    old_log_probs: Float[Tensor, "B T"]
    ref_log_probs: Float[Tensor, "B T"]
    values: Float[Tensor, "B T"]
    advantages: Float[Tensor, "B T"]
    returns: Float[Tensor, "B T"]
    row_weights: Float[Tensor, " B"]

    @property
    def response_mask(self) -> Bool[Tensor, "B T"]:
        """Slots of the response's tokens."""
        return self.labels != IGNORE_INDEX

    @property
    def last_slot(self) -> Int[Tensor, " B"]:
        """Slot of each response's last token; 0 in a row without tokens."""
        return (self.lengths - 2).clamp(min=0)

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, rows: Int[Tensor, " N"]) -> "Rollout":
        """Some rows, cut to the longest of them.

        Args:
            rows: Indices; when there are none, one row without tokens is given, so that every rank has a shape.
        """
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        if len(rows) == 0:
            blank = Rollout(**{name: value.new_zeros([1] * value.ndim) for name, value in columns.items()})
            return replace(blank, labels=torch.full_like(blank.labels, IGNORE_INDEX))
        width = max(1, int(self.lengths[rows].max()))
        picked = {name: value[rows] for name, value in columns.items()}
        return Rollout(**{name: value[:, :width] if value.ndim == 2 else value for name, value in picked.items()})

    def split(self, size: int) -> "Iterator[tuple[Int[Tensor, ' N'], Rollout]]":
        """Stretches of rows, each cut to its longest, with the rows' numbers; at least one.

        Args:
            size: Most rows of a stretch.
        """
        numbers = torch.arange(len(self), device=self.lengths.device)
        if len(self) <= size:
            yield numbers, self
            return
        for rows in torch.split(numbers, size):
            yield rows, self.select(rows)

    @classmethod
    def of(cls, samples: Sequence[Sample], scores: Float[Tensor, " B"], device: torch.device) -> "Rollout":
        """Samples as tensors; what needs a model is 0.

        Args:
            samples: Perhaps none.
            scores: One per sample.
            device: Where the tensors go.
        """
        lengths = [len(s.prompt_ids) + len(s.response_ids) for s in samples]
        width = max(lengths, default=1)
        ids = np.zeros((len(samples), width), dtype=np.int64)
        labels = np.full((len(samples), width), IGNORE_INDEX, dtype=np.int64)
        for row, sample in enumerate(samples):
            start = len(sample.prompt_ids)
            ids[row, : lengths[row]] = [*sample.prompt_ids, *sample.response_ids]
            labels[row, start - 1 : lengths[row] - 1] = sample.response_ids
        zeros = torch.zeros(len(samples), width, dtype=torch.float32, device=device)
        return cls(
            input_ids=torch.from_numpy(ids).to(device),
            labels=torch.from_numpy(labels).to(device),
            lengths=torch.tensor(lengths, dtype=torch.int64, device=device),
            scores=scores.to(device, torch.float32),
            old_log_probs=zeros,
            ref_log_probs=zeros,
            values=zeros,
            advantages=zeros,
            returns=zeros,
            row_weights=torch.ones(len(samples), dtype=torch.float32, device=device),
        )


def sample_seed(base_seed: int, number: int, repeat: int) -> int:
    """Seed of a response's random numbers: it depends on nothing but the run's seed and which response it is.

    Args:
        base_seed: Of the run.
        number: Of the prompt among all of the run.
        repeat: Which response to it.
    """
    words = np.random.SeedSequence((base_seed, number, repeat)).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


def generate_samples(
    engine: GenerationEngine,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[dict[str, object]],
    seeds: Sequence[int],
    config: SamplingConfig,
    stop_ids: tuple[int, ...],
) -> tuple[list[Sample], list[list[float]]]:
    """Responses to prompts, those of like length together, and the log-probability of each sampled token.

    Args:
        engine: Of the policy.
        prompts: Token ids.
        rows: The prompts' source records.
        seeds: Of each prompt's random numbers.
        config: How to sample.
        stop_ids: Tokens that end a response.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    size = config.batch_size or max(1, len(prompts))
    samples: dict[int, Sample] = {}
    log_probs: dict[int, list[float]] = {}
    for begin in range(0, len(order), size):
        chunk = order[begin : begin + size]
        params = [
            SamplingParams(config.max_new_tokens, temperature=config.temperature, stop_ids=stop_ids, seed=seeds[i])
            for i in chunk
        ]
        for i, completion in zip(chunk, engine.generate([prompts[i] for i in chunk], params), strict=True):
            tokenizer = engine.tokenizer
            prompt = "" if tokenizer is None else tokenizer.decode(prompts[i], skip_special=True)
            samples[i] = Sample(
                prompt, completion.text, list(prompts[i]), completion.token_ids, completion.stop_reason, dict(rows[i])
            )
            log_probs[i] = completion.token_log_probs
    return [samples[i] for i in range(len(prompts))], [log_probs[i] for i in range(len(prompts))]


def state_values(
    critic: ScoringTransformer, input_ids: Int[Tensor, "B T"], labels: Int[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """The critic's value of what came before each labelled token, 0 elsewhere.

    Args:
        critic: A scorer; its number at position t knows the tokens up to t, and none later.
        input_ids: Rows.
        labels: The token after each position, `IGNORE_INDEX` where none counts.
    """
    return torch.where(labels != IGNORE_INDEX, critic(input_ids), 0.0)


def token_rewards(
    scores: Float[Tensor, " B"],
    kl: Float[Tensor, "B T"],
    last_slot: Int[Tensor, " B"],
    response_mask: Bool[Tensor, "B T"],
    *,
    kl_coef: float,
) -> Float[Tensor, "B T"]:
    """The reward of each token: its share of the KL penalty, and at the last one the score of the response.

    Ouyang et al. 2022, arXiv:2203.02155, eq. 2, token by token as in Ziegler et al. 2019, arXiv:1909.08593, eq. 2.

    Args:
        scores: Of the responses.
        kl: log-ratio of policy to reference at each token, in nats.
        last_slot: Slot of each response's last token.
        response_mask: Slots of the responses' tokens.
        kl_coef: Penalty per nat.
    """
    rewards = torch.where(response_mask, -kl_coef * kl, 0.0)
    at_end = torch.zeros_like(rewards).scatter(1, last_slot[:, None], scores[:, None])
    return rewards + torch.where(response_mask, at_end, 0.0)
