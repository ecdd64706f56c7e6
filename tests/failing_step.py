"""A callback that fails when a step's loss is known, and notes the loss."""

from pathlib import Path
from typing import Any

import lightning as L


class FailAtStep(L.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Any) -> None:
        if trainer.global_step == self.step:
            Path("loss.txt").write_text(f"{float(loss):.6g}")
            raise RuntimeError("fell off the bus")
