"""The learning rate of every parameter group, beside the losses."""

from typing import Any

import lightning as L


class LearningRateLogger(L.Callback):
    """Logs `lr/<group>`: the rate the step was taken with, at logging steps.

    A stage of several optimizer steps an item, at one rate, logs it with the item's other metrics itself.
    """

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """Log before the schedule moves on.

        Args:
            trainer: The trainer.
            pl_module: The stage.
            optimizer: The optimizer about to step.
        """
        if not pl_module.automatic_optimization:
            return
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            for position, group in enumerate(optimizer.param_groups):
                pl_module.log(f"lr/{group.get('name', position)}", float(group["lr"]))
