"""One optimizer step on `world` gloo processes; the first writes the gradients and the validation loss to a file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import lightning as L
import torch

from tiny_run import StepData, batch_of, random_rows, tiny_stage, tiny_trainer

world, out = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
lengths = [9, 3, 12, 1, 7, 5, 11, 2]
rows = random_rows(8, lambda i: lengths[i])


class Shares(StepData):
    """Each process takes its contiguous share of the rows, in micro-batches of one row."""

    def share(self) -> list[list[int]]:
        per_rank = len(rows) // self.trainer.world_size
        start = self.trainer.global_rank * per_rank
        return rows[start : start + per_rank]

    def train_dataloader(self):
        self.steps = [[batch_of([row]) for row in self.share()]]
        return super().train_dataloader()

    def val_dataloader(self):
        self.validation = [batch_of(self.share())]
        return super().val_dataloader()


class Gradients(L.Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.values = {n: p.grad.clone() for n, p in pl_module.named_parameters()}


gradients = Gradients()
trainer = tiny_trainer(
    out.parent, [gradients], precision="64-true", devices=world, strategy="ddp" if world > 1 else "auto"
)
stage = tiny_stage()
data = Shares([])
loss = trainer.validate(stage, data, verbose=False)[0]["val/loss"]
trainer.fit(stage, data)
if trainer.is_global_zero:
    torch.save({"gradients": gradients.values, "val/loss": loss}, out)
