"""What a run is about to do, printed before step 0."""

from typing import Any

import lightning as L
from rich.console import Console

from lmstack.data.modules import PretrainingData
from lmstack.data.rank import Rank
from lmstack.models.transformer import Transformer
from lmstack.planning import describe_mixture, describe_run, measure_speed, plan_run


class Announce(L.Callback):
    """Prints parameters, tokens, FLOPs, memory, time and mixture, unless the run goes on from a checkpoint.

    Args:
        config: The composed config.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print.

        Args:
            trainer: The trainer.
            pl_module: The stage; one without a transformer has no plan.
        """
        transformer = getattr(pl_module, "transformer", None)
        data: Any = getattr(trainer, "datamodule", None)
        if not trainer.is_global_zero or trainer.global_step > 0 or not isinstance(transformer, Transformer):
            return
        facts = ("tokens_at_step", "sequence_length", "micro_batch_size", "global_batch_size")
        if not all(hasattr(data, fact) for fact in facts):  # rows are not all of one length: nothing to plan with
            return
        tokens_at_step = data.tokens_at_step
        num_steps = int(trainer.estimated_stepping_batches)
        model = self.config["model"]
        shape = {
            "sequence_length": data.sequence_length,
            "micro_batch_size": data.micro_batch_size,
            "precision": str(trainer.precision),
        }
        plan = plan_run(
            transformer.config,
            num_steps=num_steps,
            num_tokens=tokens_at_step(num_steps),
            global_batch_size=data.global_batch_size,
            world_size=trainer.world_size,
            data_parallel=Rank.of(trainer).world_size,
            master_weights=bool(model["optimizer"].get("master_weights")),
            optimizer=model["optimizer"]["kind"],
            activation_checkpointing=transformer.activation_checkpointing,
            speed=measure_speed(transformer.config, device=trainer.strategy.root_device, **shape),
            **shape,
        )
        console = Console(highlight=False)
        console.print(describe_run(plan, f"{trainer.default_root_dir}"), "")
        if isinstance(data, PretrainingData):
            console.print(describe_mixture(data.mixture_plan.table(data.samples_at_step(num_steps))), "")
