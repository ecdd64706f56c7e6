"""What is asked of the engine for one prompt, and what it answers."""

from dataclasses import dataclass
from math import inf
from typing import Literal

StopReason = Literal["length", "stop_id", "stop_string", "context"]
"""Why a completion ended."""


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
