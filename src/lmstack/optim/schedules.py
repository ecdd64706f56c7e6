"""Learning-rate schedules: each a closed form of the step, without memory.

Step s = 0, 1, ... is the optimizer step about to be taken; w is the length of the warm-up and n of the run, in steps.
Warm-up multiplies by (s + 1) / w: never zero, and one at s = w - 1. A decay over d steps that begins at step b has
made the progress (s - b) / d at step s: step b is still at the peak, and the end would be reached at step b + d, the
first after the decay. So no step of a run is wasted on a learning rate of zero, at either end.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lmstack.optim.durations import parse_duration


@dataclass(frozen=True)
class ConstantSchedule:
    """The peak after the warm-up.

    Attributes:
        warmup: Length of the linear warm-up: steps, tokens or a share of the run.
    """

    warmup: int | str = 0
    kind: Literal["constant"] = "constant"

    def __post_init__(self) -> None:
        """Check the durations."""
        parse_duration(self.warmup)


@dataclass(frozen=True)
class LinearSchedule:
    """A straight line from the peak to the end of the run.

    Attributes:
        warmup: Length of the linear warm-up: steps, tokens or a share of the run.
        final: What the peak is multiplied by at the end.
    """

    warmup: int | str = 0
    final: float = 0.0
    kind: Literal["linear"] = "linear"

    def __post_init__(self) -> None:
        """Check the durations and the range."""
        parse_duration(self.warmup)
        _check_final(self.final)


@dataclass(frozen=True)
class CosineSchedule:
    """Half a cosine from the peak to the end of the run (Loshchilov and Hutter 2016, arXiv:1608.03983).

    Attributes:
        warmup: Length of the linear warm-up: steps, tokens or a share of the run.
        final: What the peak is multiplied by at the end.
    """

    warmup: int | str = 0
    final: float = 0.1
    kind: Literal["cosine"] = "cosine"

    def __post_init__(self) -> None:
        """Check the durations and the range."""
        parse_duration(self.warmup)
        _check_final(self.final)


@dataclass(frozen=True)
class WSDSchedule:
    """Warm-up, stable, decay: the peak until `decay` before the end (Hu et al. 2024, arXiv:2404.06395).

    Attributes:
        warmup: Length of the linear warm-up: steps, tokens or a share of the run.
        decay: Length of the decay: steps, tokens or a share of the run.
        shape: Of the decay at progress p: 1 - p, 1 - sqrt(p) (Hägele et al. 2024, arXiv:2405.18392), or half a cosine.
        final: What the peak is multiplied by at the end.
    """

    warmup: int | str = 0
    decay: int | str = "20%"
    shape: Literal["linear", "sqrt", "cosine"] = "sqrt"
    final: float = 0.0
    kind: Literal["wsd"] = "wsd"

    def __post_init__(self) -> None:
        """Check the durations and the range."""
        parse_duration(self.warmup)
        parse_duration(self.decay)
        _check_final(self.final)


@dataclass(frozen=True)
class InverseSqrtSchedule:
    """The peak times sqrt(w / (s + 1)) after the warm-up (Vaswani et al. 2017, arXiv:1706.03762, section 5.3).

    Attributes:
        warmup: Length of the linear warm-up: steps, tokens or a share of the run.
    """

    warmup: int | str
    kind: Literal["inverse_sqrt"] = "inverse_sqrt"

    def __post_init__(self) -> None:
        """Check the durations."""
        parse_duration(self.warmup)


@dataclass(frozen=True)
class StepSchedule:
    """The peak, multiplied by `factor` at every milestone.

    Attributes:
        milestones: When: steps, tokens or shares of the run, counted from its start.
        warmup: Length of the linear warm-up: steps, tokens or a share of the run.
        factor: What each milestone multiplies by.
    """

    milestones: tuple[int | str, ...]
    warmup: int | str = 0
    factor: float = 0.1
    kind: Literal["step"] = "step"

    def __post_init__(self) -> None:
        """Check the durations."""
        for duration in (self.warmup, *self.milestones):
            parse_duration(duration)


Schedule = ConstantSchedule | LinearSchedule | CosineSchedule | WSDSchedule | InverseSqrtSchedule | StepSchedule


def lr_multiplier(
    schedule: Schedule, step: int, total_steps: int | None, steps_in: Callable[[int | str], int]
) -> float:
    """What the peak learning rate is multiplied by at an optimizer step.

    Args:
        schedule: Its shape.
        step: The optimizer step about to be taken, from 0.
        total_steps: Optimizer steps of the whole run; None when it has no end.
        steps_in: Optimizer steps that a duration takes, such as `to_steps` with the run's length filled in.

    Returns:
        At most 1. Steps beyond the end of the run stay at the end of the decay.

    Raises:
        ValueError: The schedule needs the run's length and there is none, or warm-up and decay do not fit into it.
    """
    warmup = steps_in(schedule.warmup)
    if isinstance(schedule, WSDSchedule):
        _check_wsd(schedule, warmup, steps_in(schedule.decay), total_steps)
    if step < warmup:
        return (step + 1) / warmup
    if isinstance(schedule, ConstantSchedule):
        return 1.0
    if isinstance(schedule, InverseSqrtSchedule):
        return math.sqrt(max(1, warmup) / (step + 1))
    if isinstance(schedule, StepSchedule):
        return schedule.factor ** sum(steps_in(milestone) <= step for milestone in schedule.milestones)
    if total_steps is None:
        raise ValueError(
            f"schedule.kind={schedule.kind} decays until the end of a run that has none. "
            "Set data.max_tokens or trainer.max_steps, or use kind=constant."
        )
    if isinstance(schedule, WSDSchedule):
        begin, shape = total_steps - steps_in(schedule.decay), schedule.shape
    else:
        begin, shape = warmup, schedule.kind
    left = _DECAYS[shape](_progress(step, begin, total_steps))
    return schedule.final + (1.0 - schedule.final) * left


_DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1.0 - progress,
    "sqrt": lambda progress: 1.0 - math.sqrt(progress),
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}


def _progress(step: int, begin: int, end: int) -> float:
    if step >= end:
        return 1.0
    return (step - begin) / (end - begin) if step > begin else 0.0


def _check_final(final: float) -> None:
    if not 0.0 <= final <= 1.0:
        raise ValueError(f"schedule.final={final}: must be in [0, 1], a share of the peak learning rate.")


def _check_wsd(schedule: WSDSchedule, warmup: int, decay: int, total_steps: int | None) -> None:
    if total_steps is not None and warmup + decay > total_steps:
        raise ValueError(
            f"schedule.warmup={schedule.warmup!r} ({warmup} steps) and schedule.decay={schedule.decay!r} "
            f"({decay} steps) do not fit into a run of {total_steps} steps. Shorten one of them, or train longer."
        )
