"""What every stage shares: optimizer and schedule, random state, what a checkpoint holds."""

import random
from abc import ABC
from dataclasses import asdict
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from lmstack.data.rank import Rank
from lmstack.models import Transformer
from lmstack.models.activation_checkpointing import ActivationCheckpointing, BudgetCheckpointing, compiler_backend
from lmstack.nn.lora import LoRAConfig
from lmstack.optim.durations import to_steps
from lmstack.optim.optimizers import AdamWConfig, MuonConfig, build_optimizer
from lmstack.optim.schedules import Schedule, lr_multiplier


class LanguageModule(L.LightningModule, ABC):
    """A training objective around a transformer.

    Every random draw of a step is a function of (seed, step, rank), so nothing about random state has to be saved for a
    resume to be exact.

    Args:
        transformer: The model trained.
        optimizer: Which optimizer, with its settings.
        schedule: How the learning rate changes over the run.
        activation_checkpointing: What is computed again in the backward pass instead of kept; null keeps everything.
        compile_blocks: Run each block through `torch.compile`.

    Raises:
        ValueError: Activations are to be checkpointed by a compiler that does not run, or gets dropout wrong.
    """

    lora: LoRAConfig | None = None
    """Adapters on the transformer, where it has some."""

    uses_dropout = True
    """Whether `transformer.dropout` holds in training."""

    def __init__(
        self,
        transformer: Transformer,
        optimizer: AdamWConfig | MuonConfig,
        schedule: Schedule,
        *,
        activation_checkpointing: ActivationCheckpointing | None,
        compile_blocks: bool,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self._configured_transformer = transformer.config  # what holds may be changed while the run goes on
        if isinstance(activation_checkpointing, BudgetCheckpointing):
            _check_budget(transformer, compile_blocks)
        self.transformer.checkpoint_activations(activation_checkpointing)
        self.optimizer_config = optimizer
        self.schedule = schedule
        self.compile_blocks = compile_blocks
        self.base_seed: int | None = None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, and a schedule that is a pure function of the step."""
        optimizer = build_optimizer(self.optimizer_config, self.transformer, module=self)
        total_steps = int(self.trainer.estimated_stepping_batches)

        def multiplier(step: int) -> float:
            return lr_multiplier(
                self.schedule, step, total_steps, lambda d: to_steps(d, total_steps, self._steps_for_tokens)
            )

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, multiplier)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ---- set-up and resume --------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Fix the seed of the run, once: a resumed run keeps the one in its checkpoint.

        Raises:
            ValueError: The precision scales gradients, which would be clipped and judged at the wrong size.
        """
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise ValueError(
                f"trainer.precision={self.trainer.precision}: gradients would be clipped while they are scaled. Use "
                "bf16-mixed, whose range is that of float32."
            )
        if self.base_seed is None:
            self.base_seed = torch.initial_seed()
        self.compile_blocks_of(self.transformer)

    def compile_blocks_of(self, transformer: Transformer) -> None:
        """Compile blocks where the stage is to: the model's, and those of what it is compared with, to round alike.

        Args:
            transformer: Whose.
        """
        if self.compile_blocks:
            backend = compiler_backend(self.transformer.activation_checkpointing)
            for block in transformer.blocks:
                block.compile(backend=backend)

    def on_train_start(self) -> None:
        """Put the loader where the checkpoint left it.

        `configure_optimizers` asks for the number of steps, for which Lightning sets the loader up before it has read
        the loader's state from the checkpoint; it then never looks again.
        """
        self.trainer.fit_loop._load_combined_loader_states()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what makes the weights loadable without this class.

        Args:
            checkpoint: Lightning's dictionary, added to in place.
        """
        tokenizer = getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None)
        checkpoint["lmstack"] = {
            "base_seed": self.base_seed,
            "transformer": self.transformer.config.to_dict(),
            "configured_transformer": self._configured_transformer.to_dict(),
            "tokenizer": tokenizer,
            "tokens_seen": self.tokens_at_step(self.trainer.global_step),
            "extra_weights": self.extra_weights(),
            "lora": None if self.lora is None else asdict(self.lora),
        }

    def extra_weights(self) -> dict[str, dict[str, Tensor]]:
        """Further safetensors files of a checkpoint, by name: none, unless a stage trains more than a transformer."""
        return {}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back the seed and a changed activation, and refuse weights of another shape by name.

        Args:
            checkpoint: Lightning's dictionary.

        Raises:
            ValueError: The checkpoint's transformer or adapters differ from the configured ones.
        """
        last = checkpoint["lmstack"]["transformer"]
        saved, ours = checkpoint["lmstack"].get("configured_transformer", last), self._configured_transformer.to_dict()
        different = [name for name in ours if saved.get(name) != ours[name] and name != "initialization"]
        if different:
            name = different[0]
            raise ValueError(
                f"model.transformer.{name}={ours[name]!r}, but the checkpoint was trained with {saved.get(name)!r}. "
                "Resume with the run's own config, or start a new run from these weights with model.init_from."
            )
        lora = None if self.lora is None else asdict(self.lora)
        if checkpoint["lmstack"].get("lora") != lora:
            raise ValueError(
                f"model.lora={lora}, but the checkpoint was trained with {checkpoint['lmstack'].get('lora')}. Resume "
                "with the run's own config, or start a new run from its merged weights with model.init_from."
            )
        if last["feed_forward"]["activation"] != self.transformer.config.feed_forward.activation:
            self.transformer.set_activation(last["feed_forward"]["activation"])
        self.base_seed = checkpoint["lmstack"]["base_seed"]

    @property
    def data_rank(self) -> Rank:
        """This process's place among those that have different data, over which strategies average gradients."""
        return Rank.of(self.trainer)

    def tokens_at_step(self, step: int) -> int:
        """Training tokens consumed after so many steps, all ranks; 0 when the data module does not count them.

        Args:
            step: Optimizer steps.
        """
        count = getattr(getattr(self.trainer, "datamodule", None), "tokens_at_step", None)
        return int(count(step)) if count else 0

    # ---- private ------------------------------------------------------------------------------------------------

    def _seed_step(self, step: int, rank: int | None = None) -> None:
        if rank is None:
            # Tensor-parallel processes compute the same residual stream and must drop the same parts of it.
            rank = getattr(self.trainer.strategy, "random_rank", self.global_rank)
        words = np.random.SeedSequence((self.base_seed or 0, step, rank)).generate_state(3, np.uint32)
        seed = int(words[0]) << 32 | int(words[1])
        # Not torch.manual_seed: for every backend there could be it notes the call stack, 4 ms a step without a GPU.
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)
        random.seed(int(words[2]))
        np.random.seed(int(words[2]))

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return value
        return self.trainer.strategy.reduce(value.clone(), reduce_op="sum")  # it reduces in place

    def _steps_for_tokens(self, tokens: int) -> int:
        count = getattr(getattr(self.trainer, "datamodule", None), "steps_for_tokens", None)
        if count is None:
            raise ValueError("A duration in tokens needs a data module with steps_for_tokens. Give it in steps.")
        return int(count(tokens))

    def _sums_device(self) -> torch.device:
        # float64 is missing on some accelerators (MPS); CPU and CUDA have it.
        return self.device if self.device.type in ("cpu", "cuda") else torch.device("cpu")

    def _is_logging_step(self) -> bool:
        interval: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return (self.trainer.global_step + 1) % interval == 0


def _check_budget(transformer: Transformer, compile_blocks: bool) -> None:
    others = "use kind=full, blocks or matmuls"
    if not compile_blocks:
        raise ValueError(
            "model.activation_checkpointing.kind=budget: it is the compiler that chooses. Set "
            f"model.compile_blocks=true, or {others}."
        )
    if transformer.config.dropout:  # torch 2.13: same loss, other gradients
        raise ValueError(
            f"model.activation_checkpointing.kind=budget with dropout={transformer.config.dropout}: when it computes "
            f"again, the compiler drops other elements: wrong gradients. Set dropout=0, or {others}."
        )
