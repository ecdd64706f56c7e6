"""How many rows an optimizer step takes, and how many steps, rows and tokens a run has."""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from lmstack.optim.durations import parse_duration


@dataclass(frozen=True)
class BatchSizeWarmup:
    """Small batches first.

    Attributes:
        start: Rows of the first optimizer step; the batch grows by as many at a time.
        duration: Until the full size is reached: `1000 steps`, `2M tokens` or `5%` of `max_tokens`.
    """

    start: int
    duration: int | str


@dataclass(frozen=True)
class BatchSizePlan:
    """The size of every optimizer step of a run, in rows over all ranks.

    The size depends on the number of rows that came before and on nothing else, so the position in the data is enough
    to go on. The last step is smaller when the tokens run out, and its last row may be shorter than the others.

    Attributes:
        global_batch_size: Rows of a full step.
        sequence_length: Tokens of a row.
        max_tokens: Tokens of the run; None never ends.
        warmup: Smaller steps at the start; None for none.
    """

    global_batch_size: int
    sequence_length: int
    max_tokens: int | None = None
    warmup: BatchSizeWarmup | None = None

    def __post_init__(self) -> None:
        for name in ("global_batch_size", "sequence_length", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} is not positive. Use at least 1.")
        if self.warmup is not None and (self.warmup.start < 1 or self.global_batch_size % self.warmup.start):
            raise ValueError(
                f"batch_size_warmup.start={self.warmup.start} does not divide "
                f"global_batch_size={self.global_batch_size}: the batch grows by so many rows at a time. "
                "Use a divisor."
            )
        _ = self._levels

    @cached_property
    def num_rows(self) -> int | None:
        """Rows of the run, a last shorter one included; None when it never ends."""
        return None if self.max_tokens is None else -(-self.max_tokens // self.sequence_length)

    @cached_property
    def num_steps(self) -> int | None:
        """Optimizer steps of the run; None when it never ends."""
        return None if self.max_tokens is None else self.steps_for_tokens(self.max_tokens)

    def batch_size_at(self, samples: int) -> int:
        """Rows of the step that begins after so many rows; 0 when the run is over.

        Args:
            samples: Rows before it, over all ranks.
        """
        size = self._levels[bisect_right(self._levels, samples, key=lambda level: level.first_sample) - 1].size
        return size if self.num_rows is None else max(0, min(size, self.num_rows - samples))

    def samples_at_step(self, step: int) -> int:
        """Rows consumed when so many optimizer steps are done.

        Args:
            step: Optimizer steps.
        """
        level = self._levels[bisect_right(self._levels, step, key=lambda level: level.first_step) - 1]
        samples = level.first_sample + (step - level.first_step) * level.size
        return samples if self.num_rows is None else min(samples, self.num_rows)

    def tokens_at_step(self, step: int) -> int:
        """Tokens consumed when so many optimizer steps are done.

        Args:
            step: Optimizer steps.
        """
        tokens = self.samples_at_step(step) * self.sequence_length
        return tokens if self.max_tokens is None else min(tokens, self.max_tokens)

    def steps_for_tokens(self, tokens: int) -> int:
        """Optimizer steps after which at least so many tokens are consumed, as if the run went on for ever.

        Args:
            tokens: Tokens, over all ranks.
        """
        rows = -(-tokens // self.sequence_length)
        level = self._levels[max(0, bisect_left(self._levels, rows, key=lambda level: level.first_sample) - 1)]
        return level.first_step + -(-(rows - level.first_sample) // level.size)

    @cached_property
    def _levels(self) -> list["_Level"]:
        levels = [_Level(0, 0, self.global_batch_size)]
        if self.warmup is None or self.warmup.start == self.global_batch_size:
            return levels
        duration, unit = self._warmup_length(self.warmup)
        num_levels = self.global_batch_size // self.warmup.start
        levels = [_Level(0, 0, self.warmup.start)]
        for i in range(1, num_levels):
            last = levels[-1]
            begin = -(-i * duration // (num_levels - 1))  # in steps or tokens, rounded up
            if unit == "steps":
                steps = begin - last.first_step
            else:
                steps = max(
                    0, -(-(begin - last.first_sample * self.sequence_length) // (last.size * self.sequence_length))
                )
            level = _Level(last.first_step + steps, last.first_sample + steps * last.size, self.warmup.start * (i + 1))
            levels[-1 if steps == 0 else len(levels) :] = [level]
        return levels

    def _warmup_length(self, warmup: BatchSizeWarmup) -> tuple[int, Literal["steps", "tokens"]]:
        duration = parse_duration(warmup.duration)
        if duration.unit != "fraction":
            return int(duration.value), duration.unit
        if self.max_tokens is None:
            raise ValueError(
                f"batch_size_warmup.duration={warmup.duration} is a share of a run without max_tokens. "
                "Give steps or tokens, or set data.max_tokens."
            )
        return int(duration.value * self.max_tokens), "tokens"


class _Level(NamedTuple):
    """From a step on, steps of a size."""

    first_step: int
    first_sample: int
    size: int
