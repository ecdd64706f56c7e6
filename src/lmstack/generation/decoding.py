"""Rows that are being continued: prefill once, then one token a step for those that still run."""

from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from lmstack.generation import sampling
from lmstack.generation.request import Completion, SamplingParams, StopReason
from lmstack.generation.text import TextStream
from lmstack.models.transformer import Transformer
from lmstack.nn.kv_cache import KVCache


class NonFiniteLogitsError(ValueError):
    """The model's logits are not finite, so that there is no distribution to sample from."""


@dataclass
class Row:
    """One prompt while it is being continued.

    Attributes:
        prompt: Its token ids.
        params: How to continue it.
        max_len: Most tokens of prompt and completion, which the model can take.
        text: Of the completion; None without a tokenizer.
        random: Its random numbers.
        token_ids: Sampled so far.
        token_log_probs: Of each of them.
        stop_reason: None while it runs.
    """

    prompt: list[int]
    params: SamplingParams
    max_len: int
    text: TextStream | None
    random: torch.Generator
    token_ids: list[int] = field(default_factory=list)
    token_log_probs: list[float] = field(default_factory=list)
    stop_reason: StopReason | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt) + len(self.token_ids)

    @property
    def is_full(self) -> bool:
        """Whether the model can take no more."""
        return self.num_tokens >= self.max_len

    @property
    def longest(self) -> int:
        """Tokens of prompt and completion if nothing stops it early."""
        return min(self.max_len, len(self.prompt) + self.params.max_new_tokens)

    def uniform(self) -> float:
        """The next random number in [0, 1); greedy rows need none."""
        return torch.rand((), generator=self.random, dtype=torch.float64).item() if self.params.temperature > 0 else 0.0

    def add(self, token: int, log_prob: float) -> None:
        """Take a sampled token, and stop if it is the last.

        Args:
            token: Its id.
            log_prob: Its log-probability.
        """
        self.token_ids.append(token)
        self.token_log_probs.append(log_prob)
        if token in self.params.stop_ids:
            self.stop_reason = "stop_id"
        elif self.text is not None:
            self.text.push(token)
            if self.text.stopped:
                self.stop_reason = "stop_string"
        if self.stop_reason is None and len(self.token_ids) >= self.params.max_new_tokens:
            self.stop_reason = "length"
        elif self.stop_reason is None and self.is_full:
            self.stop_reason = "context"
        if self.stop_reason is not None and self.text is not None:
            self.text.finish()

    def completion(self) -> Completion:
        """What was generated."""
        text = "" if self.text is None else self.text.text
        return Completion(self.token_ids, self.token_log_probs, text, self.stop_reason or "context")


class Decoding:
    """The rows that still run, and what is on the device for them.

    The first step reads the prompts, padded on the right: a padding token's key and value lie at positions that its row
    overwrites before it attends to them. Later steps read the token sampled last. Token number n of a row has position
    n, so that its neighbours' lengths have no influence.

    Args:
        transformer: In evaluation mode.
        num_ids: Ids below this may be sampled; a padded vocabulary has more.
        rows: At least one.
    """

    def __init__(self, transformer: Transformer, num_ids: int, rows: list[Row]) -> None:
        self.transformer = transformer
        self.num_ids = num_ids
        self.rows = rows
        self.device = transformer.embedding.weight.device
        self.cache = KVCache(
            transformer.config,
            len(rows),
            max(row.longest for row in rows),
            device=self.device,
            dtype=_compute_dtype(transformer),
        )
        self.choice = Choice.of(rows, transformer.config.vocab_size, self.device)
        self.is_prefilled = False

    def step(self) -> None:
        """Give every row one more token, and drop the rows that this stops."""
        hidden = self._read_sampled() if self.is_prefilled else self._prefill()
        self.is_prefilled = True
        logits = self.transformer.logits(hidden)[:, 0]  # (B, 1, V) -> (B, V)
        uniform = torch.tensor([row.uniform() for row in self.rows], dtype=torch.float64, device=self.device)
        tokens, log_probs = self.choice.choose(logits, self.num_ids, uniform)
        for row, token, log_prob in zip(self.rows, tokens.tolist(), log_probs.tolist(), strict=True):
            if not -inf < log_prob < inf:
                raise NonFiniteLogitsError(
                    f"Token {row.num_tokens} of a row has log-probability {log_prob}: the model's logits are not "
                    "finite. Its weights are probably damaged or diverged."
                )
            row.add(token, log_prob)
        self._drop_stopped()

    def _prefill(self) -> Float[Tensor, "B 1 D"]:
        lengths = [len(row.prompt) for row in self.rows]
        width = max(lengths)
        inputs = torch.tensor([row.prompt + [0] * (width - len(row.prompt)) for row in self.rows], device=self.device)
        positions = torch.arange(width, device=self.device).expand_as(inputs)
        self.cache.extent = width
        hidden: Tensor = self.transformer(inputs, position_ids=positions, cache=self.cache)
        last = torch.tensor(lengths, device=self.device) - 1
        return hidden[torch.arange(len(lengths), device=self.device), last][:, None]

    def _read_sampled(self) -> Float[Tensor, "B 1 D"]:
        lengths = [row.num_tokens for row in self.rows]
        inputs = torch.tensor([[row.token_ids[-1]] for row in self.rows], device=self.device)
        positions = torch.tensor(lengths, device=self.device)[:, None] - 1
        self.cache.extent = max(lengths)
        hidden: Tensor = self.transformer(inputs, position_ids=positions, cache=self.cache)
        return hidden

    def _drop_stopped(self) -> None:
        live = [number for number, row in enumerate(self.rows) if row.stop_reason is None]
        if len(live) == len(self.rows):
            return
        self.rows = [self.rows[number] for number in live]
        if live:
            kept = torch.tensor(live, device=self.device)
            self.cache.select(kept)
            self.choice.select(kept)


@dataclass
class Choice:
    """The rows' sampling parameters on the device; None where no row asks for that transformation.

    Attributes:
        samples: Whether any row has a temperature above 0.
        temperature: 0 is greedy.
        penalty: Of repetition.
        seen: Tokens of the prompt and the completion so far.
        top_k: How many tokens to sample from.
        top_p: Probability of the tokens to sample from.
        min_p: Least probability beside the most probable token.
    """

    samples: bool
    temperature: Float32[Tensor, " B"]
    penalty: Float32[Tensor, " B"] | None
    seen: Bool[Tensor, "B V"] | None
    top_k: Int64[Tensor, " B"] | None
    top_p: Float64[Tensor, " B"] | None
    min_p: Float32[Tensor, " B"] | None

    @classmethod
    def of(cls, rows: list[Row], vocab_size: int, device: torch.device) -> "Choice":
        """The parameters of some rows.

        Args:
            rows: In the order of the batch.
            vocab_size: Number V of logits.
            device: Where the logits are.
        """
        params = [row.params for row in rows]

        def column(values: list[Any], default: Any, dtype: torch.dtype) -> Tensor | None:
            if all(value in (None, default) for value in values):
                return None
            return torch.tensor([default if v is None else v for v in values], dtype=dtype, device=device)

        penalty = column([p.repetition_penalty for p in params], 1.0, torch.float32)
        seen = None
        if penalty is not None:
            seen = torch.zeros(len(rows), vocab_size, dtype=torch.bool, device=device)
            for mask, row in zip(seen, rows, strict=True):
                mask[torch.tensor(row.prompt, device=device)] = True
        return cls(
            samples=any(p.temperature > 0 for p in params),
            temperature=torch.tensor([p.temperature for p in params], dtype=torch.float32, device=device),
            penalty=penalty,
            seen=seen,
            top_k=column([p.top_k for p in params], vocab_size, torch.int64),
            top_p=column([p.top_p for p in params], 1.0, torch.float64),
            min_p=column([p.min_p for p in params], 0.0, torch.float32),
        )

    def choose(
        self, logits: Float32[Tensor, "B V"], num_ids: int, uniform: Float64[Tensor, " B"]
    ) -> tuple[Int64[Tensor, " B"], Float32[Tensor, " B"]]:
        """The next token of each row among the first ids, and its log-probability among all.

        Args:
            logits: Unnormalised scores.
            num_ids: Ids below this may be chosen.
            uniform: A number in [0, 1) for each row.
        """
        scaled = sampling.apply_temperature(logits, self.temperature)
        candidates = scaled
        if self.seen is not None and self.penalty is not None:
            penalized = sampling.penalize_repetition(logits, self.seen, self.penalty)
            candidates = sampling.apply_temperature(penalized, self.temperature)
        if num_ids < logits.size(1):
            candidates = candidates.clone()
            candidates[:, num_ids:] = sampling.NEGATIVE_INFINITY
        if self.top_k is not None:
            candidates = sampling.keep_top_k(candidates, self.top_k)
        if self.top_p is not None:
            candidates = sampling.keep_top_p(candidates, self.top_p)
        if self.min_p is not None:
            candidates = sampling.keep_min_p(candidates, self.min_p)
        if self.samples:
            tokens = sampling.choose_tokens(candidates, self.temperature, uniform)
        else:
            tokens = candidates.argmax(1)
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        return tokens, scaled.gather(1, tokens[:, None])[:, 0] - scaled.logsumexp(1)

    def select(self, rows: Int64[Tensor, " N"]) -> None:
        """Keep only these rows, in this order.

        Args:
            rows: Indices into the batch.
        """
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])


def _compute_dtype(transformer: Transformer) -> torch.dtype:
    weight = transformer.embedding.weight
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype
