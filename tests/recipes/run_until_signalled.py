"""A run that goes on until a signal comes."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import lightning as L
import torch

from lmstack.callbacks import Checkpointing, Preemption
from tiny_run import StepData, batch_of, random_rows, tiny_stage, tiny_trainer

torch.set_num_threads(1)


class Slowly(L.Callback):
    def on_train_batch_end(self, trainer, *_):
        print("step", trainer.global_step, flush=True)
        time.sleep(0.02)


steps = [[batch_of(random_rows(2, lambda _: 5))]] * 5000
tiny_trainer(Path(sys.argv[1]), [Slowly(), Preemption(), Checkpointing(every_n_steps=100_000)]).fit(
    tiny_stage(), StepData(steps)
)
