"""A guarded run on two gloo processes, of which only the second sees what is wrong; each writes its state to a file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import math
from typing import Any

import lightning as L
import torch

from lmstack.callbacks import SpikeGuard
from lmstack.callbacks.spike_policies import RollbackPolicy
from tiny_guarded import GuardedData, Spoil, run

folder = Path(sys.argv[1])
torch.set_num_threads(1)
second_half = [row for row in range(120, 132) if row % 4 >= 2]  # of each step's four rows, the second rank's


class Write(L.Callback):
    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        state = [pl_module.state_dict(), trainer.optimizers[0].state_dict()]
        torch.save(state, folder / f"rank{trainer.global_rank}.pt")


run(
    folder,
    SpikeGuard(RollbackPolicy(max_strikes=2, margin_steps=1), threshold=3.0, window=16, min_history=4),
    data=GuardedData(second_half),
    # After the gradients were summed: the first rank's own gradient is finite.
    extra=[Spoil([6], lambda g: g.fill_(math.nan)), Write()],
    steps=36,
    devices=2,
    strategy="ddp",
)
