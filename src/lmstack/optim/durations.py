"""Durations in optimizer steps, tokens, or a share of the run."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Literal

_PATTERN = re.compile(r"([0-9][0-9_,]*(?:\.[0-9]+)?(?:e[0-9]+)?)\s*([kmbt]?)\s*(%|steps?|tokens?)?", re.IGNORECASE)
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_EXAMPLES = "Write 100 or '100 steps', '2M tokens', or '5%' (of the run)."


@dataclass(frozen=True)
class Duration:
    """A length of training.

    Attributes:
        value: How many steps or tokens, or the fraction of the run.
        unit: What `value` counts.
    """

    value: int | Decimal
    unit: Literal["steps", "tokens", "fraction"]

    def __str__(self) -> str:
        if self.unit == "fraction":
            return f"{(Decimal(self.value) * 100).normalize():f}%"
        return f"{self.value} {self.unit}"


def parse_duration(text: int | str | Duration) -> Duration:
    """What a person wrote, as a duration.

    Args:
        text: A number of steps, or a number with a unit: `100 steps`, `2M tokens`, `1.5B tokens`, `5%`.

    Returns:
        The same length; a duration is returned as it is.

    Raises:
        ValueError: It is no duration, is negative, is no whole number of steps or tokens, or is above 100%.
    """
    if isinstance(text, Duration):
        return text
    match = None if isinstance(text, bool) else _PATTERN.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration. {_EXAMPLES}")
    number, suffix, unit = match.groups()
    value = Decimal(number.replace("_", "").replace(",", "")) * _FACTORS[suffix.lower()]
    if unit == "%":
        if suffix or value > 100:
            raise ValueError(f"{text!r} is more than the whole run. {_EXAMPLES}")
        return Duration(value / 100, "fraction")
    if value != int(value):
        raise ValueError(f"{text!r} is not a whole number of {unit or 'steps'}. {_EXAMPLES}")
    return Duration(int(value), "tokens" if (unit or "").lower().startswith("token") else "steps")


def to_steps(duration: int | str | Duration, total_steps: int | None, tokens_to_steps: Callable[[int], int]) -> int:
    """The number of optimizer steps that a duration takes.

    Args:
        duration: The duration, or its text.
        total_steps: Optimizer steps of the whole run; None when it has no end.
        tokens_to_steps: Steps after which so many tokens have been consumed; the data module knows.

    Returns:
        Steps; a share of the run is rounded to the nearest.

    Raises:
        ValueError: A share of a run without end.
    """
    duration = parse_duration(duration)
    if duration.unit == "steps":
        return int(duration.value)
    if duration.unit == "tokens":
        return tokens_to_steps(int(duration.value))
    if total_steps is None:
        raise ValueError(f"'{duration}' is a share of a run that has no end. Set data.max_tokens or trainer.max_steps.")
    return int((Decimal(duration.value) * total_steps).to_integral_value(ROUND_HALF_UP))
