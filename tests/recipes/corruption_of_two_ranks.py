"""Watched runs on two gloo processes: a right one, one whose second rank computes wrongly, one with a bit flipped."""

import logging
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import lightning as L
import torch

from lmstack.callbacks import CorruptionWatch, PostMortem
from tiny_guarded import GuardedData, run

folder = Path(sys.argv[1])
torch.set_num_threads(1)


class Write(L.Callback):
    def __init__(self, name: str) -> None:
        self.name = name

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        state = [pl_module.state_dict(), trainer.optimizers[0].state_dict(), torch.get_rng_state()]
        torch.save(state, folder / f"{self.name}-{trainer.global_rank}.pt")


class WrongAlone(L.Callback):
    """The second rank's attention is off by a little."""

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.global_rank == 1:
            pl_module.transformer.blocks[0].attention.register_forward_hook(lambda *found: found[-1] * 1.0001)


class FlipBit(L.Callback):
    """The lowest bit of one weight, on the second rank, after the third step."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 3:
            name, weight = next((n, w) for n, w in pl_module.named_parameters() if ".blocks.1.attention" in n)
            print("flipped", name)
            weight.data.view(torch.int32).view(-1)[5] ^= 1


def train(name: str, *callbacks: L.Callback) -> None:
    options = {"devices": 2, "strategy": "ddp", "every_n_steps": 1}
    run(folder / name, None, data=GuardedData(), first=[PostMortem(), *callbacks], steps=6, **options)


train("plain", Write("plain"))
train("watched", CorruptionWatch(2), Write("watched"))
handler = logging.FileHandler(folder / "warned.txt")
logging.getLogger("lmstack.callbacks.corruption_watch").addHandler(handler)
train("wrong", CorruptionWatch(4, policy="warn"), WrongAlone())
logging.getLogger("lmstack.callbacks.corruption_watch").removeHandler(handler)
train("flipped", CorruptionWatch(2), FlipBit())
