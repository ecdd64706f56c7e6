"""Optimizers, learning-rate schedules and gradient clipping, in plain torch."""

from lmstack.optim.durations import Duration, parse_duration, to_steps
from lmstack.optim.optimizers import AdamWConfig, MuonConfig, build_optimizer
from lmstack.optim.parameter_groups import parameter_groups
from lmstack.optim.schedules import (
    ConstantSchedule,
    CosineSchedule,
    InverseSqrtSchedule,
    LinearSchedule,
    Schedule,
    StepSchedule,
    WSDSchedule,
    lr_multiplier,
)

__all__ = [
    "AdamWConfig",
    "ConstantSchedule",
    "CosineSchedule",
    "Duration",
    "InverseSqrtSchedule",
    "LinearSchedule",
    "MuonConfig",
    "Schedule",
    "StepSchedule",
    "WSDSchedule",
    "build_optimizer",
    "lr_multiplier",
    "parameter_groups",
    "parse_duration",
    "to_steps",
]
