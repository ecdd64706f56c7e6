"""A guarded run with each strategy that is named, on two gloo processes, of which only the second sees a NaN."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import math

import torch
from strategy_runs import strategy_of

from lmstack.callbacks import SpikeGuard
from lmstack.callbacks.spike_policies import RollbackPolicy
from lmstack.optim.optimizers import AdamWConfig
from tiny_guarded import GuardedData, Spoil, run

STEPS = 36
# Rows of one token leave queries and keys gradients of rounding noise, of which the usual epsilon makes full steps.
OPTIMIZER = AdamWConfig(lr=1e-2, eps=1e-3)


def guarded(folder: Path, **options: object) -> None:
    """An update that is skipped for a gradient, and a rollback for rows that are spoilt."""
    run(
        folder,
        SpikeGuard(RollbackPolicy(max_strikes=2, margin_steps=1), threshold=3.0, window=16, min_history=4),
        data=GuardedData(range(120, 132)),
        extra=[Spoil([6], lambda g: g.fill_(math.nan))],
        optimizer=OPTIMIZER,
        steps=STEPS,
        dropout=0.0,  # processes draw random numbers of their own
        **options,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        guarded(Path(sys.argv[1]) / name, devices=1 if name == "single" else 2, strategy=strategy_of(name, {}))
