"""Batched generation with a key-value cache: prefill once, then one token a step for the rows that still run.

A row is independent of the rows beside it: it has its own parameters, its own random numbers and its own positions, and
leaves the batch when it stops.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor, nn

from lmstack.generation import sampling
from lmstack.generation.text import TextStream
from lmstack.models.transformer import Transformer
from lmstack.nn.kv_cache import KVCache
from lmstack.tokenization.tokenizer import Tokenizer

StopReason = Literal["length", "stop_id", "stop_string", "context"]


class NonFiniteLogitsError(ValueError):
    """The model's logits are not finite, so that there is no distribution to sample from."""


@dataclass(frozen=True)
class SamplingParams:
    """How one prompt is continued.

    Attributes:
        max_new_tokens: Most tokens to generate, at least 1.
        temperature: Logits are divided by it; 0 takes the most probable token.
        top_k: Sample from the k most probable tokens; None from all.
        top_p: Sample from the fewest tokens that together have this probability; None from all.
        min_p: Sample from tokens at least this probable beside the most probable one; None from all.
        repetition_penalty: Above 1 lowers tokens that the prompt or the completion holds; 1 does nothing.
        stop_ids: The completion ends with the first of these tokens.
        stop_strings: The completion's text ends before the first of these strings.
        seed: Of this row's random numbers. Equal prompts with equal parameters have equal completions.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what the types cannot say.

        Raises:
            ValueError: A field is out of range.
        """
        rules = [
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < inf, "at least 0 and finite; 0 is greedy"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1, or None for all tokens"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1, or None for all tokens"),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "from 0 to 1, or None for all tokens"),
            ("repetition_penalty", 0 < self.repetition_penalty < inf, "above 0 and finite; 1 does nothing"),
            ("stop_strings", not isinstance(self.stop_strings, str), "a tuple of strings, not one string"),
            ("stop_strings", all(self.stop_strings), "without the empty string, which would stop everything"),
            ("seed", 0 <= self.seed < 2**63, "from 0 to 2**63 - 1"),
        ]
        for name, is_kept, rule in rules:
            if not is_kept:
                raise ValueError(f"sampling.{name}={getattr(self, name)!r}: must be {rule}.")


@dataclass
class Completion:
    """What was generated for one prompt.

    Attributes:
        token_ids: Every token that was sampled: a stop id and the tokens of a stop string included.
        token_log_probs: Natural-log probability of each of them under softmax(logits / temperature), untruncated and
            without the repetition penalty (greedy rows: temperature 1): what a scorer of the same model computes.
        text: What the tokens add to the text of the prompt, without the stop id, cut before the stop string.
            Empty without a tokenizer.
        stop_reason: `stop_id`, `stop_string`, `length` (max_new_tokens reached) or `context` (prompt and completion
            fill the model's max_seq_len).
    """

    token_ids: list[int]
    token_log_probs: list[float]
    text: str
    stop_reason: StopReason


class GenerationEngine:
    """Continues prompts with a transformer.

    The engine only reads the model: no gradients, the global random state untouched, each module's train or eval mode
    as it was before.

    Args:
        transformer: The model; its weights may change between calls.
        tokenizer: For text in and out, and for the ids that exist where the model's vocabulary is padded; None works
            on ids alone.
    """

    def __init__(self, transformer: Transformer, tokenizer: Tokenizer | None) -> None:
        if not transformer.config.causal:
            raise ValueError("transformer.causal=False: only a causal model can generate.")
        if tokenizer is not None and tokenizer.vocab_size > transformer.config.vocab_size:
            raise ValueError(
                f"The tokenizer has {tokenizer.vocab_size} tokens, the model {transformer.config.vocab_size}. "
                "Use the tokenizer that the model was trained with."
            )
        self.transformer = transformer
        self.tokenizer = tokenizer

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a prompt: the end-of-text token, which opens a document in training, then the text.

        Args:
            text: May be empty when the tokenizer has an end-of-text token.

        Raises:
            ValueError: There is no tokenizer, or nothing to start from.
        """
        if self.tokenizer is None:
            raise ValueError("The engine has no tokenizer: give it one, or pass token ids.")
        opening = [] if self.tokenizer.eot_id is None else [self.tokenizer.eot_id]
        ids = opening + self.tokenizer.encode(text)
        if not ids:
            raise ValueError(
                "The prompt is empty and the tokenizer has no end-of-text token to start from. Give a prompt."
            )
        return ids

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[Completion]:
        """Continue prompts as one batch.

        Args:
            prompts: Token ids, used as they are; at least one id each, at most the model's max_seq_len.
            params: One for all (the seed included), or one for each prompt.

        Returns:
            A completion for each prompt, in order.

        Raises:
            ValueError: A prompt is empty or too long, or holds an unknown id; or params do not fit.
        """
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(each)} params: give one, or one for each prompt.")
        rows = [self._row(number, prompt, p) for number, (prompt, p) in enumerate(zip(prompts, each, strict=True))]
        decoding = _Decoding(self.transformer, self.tokenizer, [row for row in rows if not row.is_full])
        with _reading(self.transformer):
            while decoding.rows:
                decoding.step()
        return [row.completion() for row in rows]

    def stream(self, prompt: Sequence[int], params: SamplingParams) -> Generator[str, None, Completion]:
        """Continue one prompt and yield its text as it appears.

        The pieces joined are the completion's text. Between two pieces the model is as it was before the call.

        Args:
            prompt: Token ids, used as they are.
            params: How to continue.

        Yields:
            The next piece, never empty.

        Returns:
            The completion (the `value` of the generator's StopIteration, or of `yield from`).
        """
        row = self._row(0, prompt, params)
        decoding = _Decoding(self.transformer, self.tokenizer, [] if row.is_full else [row])
        while decoding.rows:
            with _reading(self.transformer):
                decoding.step()
            if row.text is not None and (piece := row.text.take()):
                yield piece
        return row.completion()

    def _row(self, number: int, prompt: Sequence[int], params: SamplingParams) -> "_Row":
        vocab_size, max_len = self.transformer.config.vocab_size, self.transformer.config.max_seq_len
        if not 1 <= len(prompt) <= max_len:
            raise ValueError(
                f"Prompt {number} has {len(prompt)} tokens: must be from 1 to the model's max_seq_len, {max_len}. "
                + ("Shorten it." if prompt else "Start it with the end-of-text token, as encode_prompt does.")
            )
        unknown = [i for i in prompt if not 0 <= i < vocab_size]
        if unknown:
            raise ValueError(
                f"Prompt {number} holds the id {unknown[0]}, outside the model's vocabulary of {vocab_size}."
            )
        if self.tokenizer is None and params.stop_strings:
            raise ValueError(f"stop_strings={params.stop_strings!r} need a tokenizer, which this engine does not have.")
        text = None if self.tokenizer is None else TextStream(self.tokenizer, prompt, params.stop_strings)
        return _Row(list(prompt), params, max_len, text, torch.Generator().manual_seed(params.seed))


@dataclass
class _Row:
    """One prompt while it is being continued."""

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
        return len(self.prompt) + len(self.token_ids)

    @property
    def is_full(self) -> bool:
        return self.num_tokens >= self.max_len

    @property
    def longest(self) -> int:
        return min(self.max_len, len(self.prompt) + self.params.max_new_tokens)

    def uniform(self) -> float:
        return torch.rand((), generator=self.random, dtype=torch.float64).item() if self.params.temperature > 0 else 0.0

    def add(self, token: int, log_prob: float) -> None:
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
        text = "" if self.text is None else self.text.text
        return Completion(self.token_ids, self.token_log_probs, text, self.stop_reason or "context")


class _Decoding:
    """The rows that still run, and what is on the device for them.

    The first step reads the prompts, padded on the right: a padding token's key and value lie at positions that its row
    overwrites before it attends to them. Later steps read the token sampled last. Token number n of a row has position
    n, so that its neighbours' lengths have no influence.
    """

    def __init__(self, transformer: Transformer, tokenizer: Tokenizer | None, rows: list[_Row]) -> None:
        self.transformer = transformer
        self.rows = rows
        if not rows:
            return
        self.device = transformer.embedding.weight.device
        self.vocab_size = transformer.config.vocab_size if tokenizer is None else tokenizer.vocab_size
        self.cache = KVCache(
            transformer.config,
            len(rows),
            max(row.longest for row in rows),
            device=self.device,
            dtype=_compute_dtype(transformer),
        )
        self.choice = _Choice.of(rows, transformer.config.vocab_size, self.device)
        self.is_prefilled = False

    def step(self) -> None:
        """Give every row one more token, and drop the rows that this stops."""
        logits = self.transformer.logits(self._last_hidden())[:, 0]  # (B, 1, V) -> (B, V)
        uniform = torch.tensor([row.uniform() for row in self.rows], dtype=torch.float64, device=self.device)
        tokens, log_probs = self.choice.choose(logits, self.vocab_size, uniform)
        for row, token, log_prob in zip(self.rows, tokens.tolist(), log_probs.tolist(), strict=True):
            if not -inf < log_prob < inf:
                raise NonFiniteLogitsError(
                    f"Token {row.num_tokens} of a row has log-probability {log_prob}: the model's logits are not "
                    "finite. Its weights are probably damaged or diverged."
                )
            row.add(token, log_prob)
        self._drop_stopped()

    def _last_hidden(self) -> Float[Tensor, "B 1 D"]:
        if self.is_prefilled:
            ends = [row.num_tokens for row in self.rows]
            inputs = torch.tensor([[row.token_ids[-1]] for row in self.rows], device=self.device)
            positions = torch.tensor(ends, device=self.device)[:, None] - 1
            self.cache.extent = max(ends)
            return self.transformer(inputs, position_ids=positions, cache=self.cache)
        self.is_prefilled = True
        width = max(len(row.prompt) for row in self.rows)
        inputs = torch.tensor([row.prompt + [0] * (width - len(row.prompt)) for row in self.rows], device=self.device)
        positions = torch.arange(width, device=self.device).expand_as(inputs)
        self.cache.extent = width
        hidden = self.transformer(inputs, position_ids=positions, cache=self.cache)
        last = torch.tensor([len(row.prompt) - 1 for row in self.rows], device=self.device)
        return hidden[torch.arange(len(self.rows), device=self.device), last][:, None]

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
class _Choice:
    """The rows' sampling parameters on the device; None where no row asks for that transformation."""

    temperature: Float32[Tensor, " B"]
    penalty: Float32[Tensor, " B"] | None
    seen: Bool[Tensor, "B V"] | None
    top_k: Int64[Tensor, " B"] | None
    top_p: Float64[Tensor, " B"] | None
    min_p: Float32[Tensor, " B"] | None

    @classmethod
    def of(cls, rows: list[_Row], vocab_size: int, device: torch.device) -> "_Choice":
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
        """The next token of each row among the first `num_ids`, and its log-probability among all."""
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
        tokens = sampling.choose_tokens(candidates, self.temperature, uniform)
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        return tokens, scaled.gather(1, tokens[:, None])[:, 0] - scaled.logsumexp(1)

    def select(self, rows: Int64[Tensor, " N"]) -> None:
        for name, value in vars(self).items():
            if value is not None:
                setattr(self, name, value[rows])


def _compute_dtype(transformer: Transformer) -> torch.dtype:
    weight = transformer.embedding.weight
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype


@contextmanager
def _reading(transformer: nn.Module) -> Iterator[None]:
    """No gradients, no dropout, no compiled code (each step has another shape); afterwards everything is as before."""
    training = [module for module in transformer.modules() if module.training]
    for module in training:
        module.training = False
    is_compiled = any(module._compiled_call_impl is not None for module in transformer.modules())
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager") if is_compiled else nullcontext():
            yield
    finally:
        for module in training:
            module.training = True
