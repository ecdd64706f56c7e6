"""DeepSpeed's ZeRO: optimizer state, gradients and weights cut over processes that have different data."""

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from lmstack.models import Transformer
from lmstack.parallel.float8 import Float8
from lmstack.parallel.gathering import copy_from_first
from lmstack.parallel.zero_engine import ZeroEngine


class DeepSpeedZeRO(DDPStrategy):
    """The Zero Redundancy Optimizer (Rajbhandari et al. 2020, arXiv:1910.02054), as DeepSpeed has it.

    Stage 1 cuts the optimizer's state, stage 2 gradients too, stage 3 the weights too. Weights are float32, as
    everywhere; `bf16-mixed` computes in bfloat16. Checkpoints hold the whole model, in the format of one process, and
    load under any other strategy and number of processes.

    Lightning's own DeepSpeed strategy is not used: it refuses CPUs, counts micro-batches itself, and writes a
    checkpoint format of DeepSpeed's. What runs here on a CPU is what runs on a GPU.

    Args:
        stage: What is cut: 1, 2 or 3.
        offload_optimizer: Keep the optimizer's state in host memory and take its steps there
            (ZeRO-Offload, arXiv:2101.06840).
        offload_parameters: Keep the weights in host memory too; stage 3.
        zero: Further settings of DeepSpeed's `zero_optimization`, in its words, such as `reduce_bucket_size` or
            `stage3_param_persistence_threshold`.
    """

    def __init__(
        self,
        *,
        stage: Literal[1, 2, 3],
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        zero: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if offload_parameters and stage != 3:
            raise ValueError(
                f"trainer.strategy.offload_parameters=true with stage={stage}: only stage 3 cuts the weights. Use "
                "strategy=deepspeed_zero3, or leave it out."
            )
        if importlib.util.find_spec("deepspeed") is None:
            raise ValueError("trainer.strategy: DeepSpeed is not installed. Run `pip install 'lmstack[deepspeed]'`.")
        self.stage = stage
        settings: dict[str, Any] = {"stage": stage}
        for part, is_offloaded in (("optimizer", offload_optimizer), ("param", offload_parameters)):
            if is_offloaded:
                settings[f"offload_{part}"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        clash = settings.keys() & (zero or {}).keys()
        if clash:
            raise ValueError(f"trainer.strategy.zero.{min(clash)}: set by an option of its own. Leave it out.")
        self.config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,  # only for DeepSpeed's own speed logs
            "zero_optimization": settings | (zero or {}),
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW steps on a CPU as well
            "steps_per_print": None,
        }
        self._engine: ZeroEngine | None = None

    # ---- set-up -----------------------------------------------------------------------------------------------------

    def setup_environment(self) -> None:
        """Connect the processes, and let DeepSpeed take over the connection."""
        super().setup_environment()
        if self.root_device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
        import deepspeed

        # Its own reduction in shared memory would be compiled first, for minutes; gloo does the same.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(auto_mpi_discovery=False)

    def setup(self, trainer: L.Trainer) -> None:
        """Give every process the first one's weights and, to train, hand the model to DeepSpeed.

        Args:
            trainer: The trainer.
        """
        module = self.lightning_module
        assert self.accelerator is not None
        assert module is not None
        self.accelerator.setup(trainer)
        self.precision_plugin.convert_module(module)
        is_training = trainer.state.fn == TrainerFn.FITTING
        if is_training:
            self._check(module)
        if self.stage != 3 or not is_training:  # stage 3 cuts the weights before they go to the device
            self.model_to_device()
        copy_from_first([p.data for p in module.parameters()], self.root_device)
        if is_training:
            self.setup_optimizers(trainer)
            self._start_engine(module)
        self.setup_precision_plugin()

    def _check(self, module: L.LightningModule) -> None:
        name = type(module).__name__
        if not hasattr(module, "loss_sums"):
            raise ValueError(f"{name} samples from the model it trains, which must be whole. Use strategy=ddp.")
        if getattr(module, "lora", None) is not None:
            raise ValueError("model.lora: adapters have next to no optimizer state to cut. Use strategy=ddp.")
        transformers = [part for part in module.modules() if isinstance(part, Transformer)]
        covered = {id(p) for part in transformers for p in part.parameters()}
        outside = [n for n, p in module.named_parameters() if id(p) not in covered]
        if len(transformers) != 1 or outside:
            what = f"has {outside[0]} beside a transformer" if outside else f"has {len(transformers)} transformers"
            raise ValueError(f"{name} {what}, which was never tried with DeepSpeed. Use strategy=ddp.")
        if self.stage == 3 and getattr(module, "compile_blocks", False):
            raise ValueError("model.compile_blocks=true with stage 3, which fetches weights as blocks run. Use false.")
        precision = "fp8" if isinstance(self.precision_plugin, Float8) else str(module.trainer.precision)
        if precision not in ("32-true", "bf16-mixed"):
            raise ValueError(f"trainer.precision={precision} with DeepSpeed: use 32-true or bf16-mixed.")

    def _start_engine(self, module: L.LightningModule) -> None:
        (optimizer,) = self.optimizers
        if not isinstance(optimizer, torch.optim.AdamW):
            raise ValueError("model.optimizer.kind: DeepSpeed flattens matrices, which Muon needs whole. Use adamw.")
        self._engine = ZeroEngine(module, optimizer, self.config)

    # ---- steps ------------------------------------------------------------------------------------------------------

    @property
    def engine(self) -> ZeroEngine:
        """Where weights, gradients and the optimizer's state are in training."""
        assert self._engine is not None, "there is no engine before training starts"
        return self._engine

    def run_window(
        self, micro_batches: Sequence[Any], share: Callable[[Tensor], Tensor]
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """All forwards and backwards of a step.

        Args:
            micro_batches: This process's share of the step.
            share: Turns the objective of a micro-batch into its share of the step's loss.

        Returns:
            What each micro-batch reports, and the sum of this process's shares, without a graph.
        """
        stage: Any = self.lightning_module
        reported, losses = [], []
        for position, batch in enumerate(micro_batches):
            sums = self.engine.call(partial(self._in_precision, stage.loss_sums, batch))
            reported.append({name: value.detach() for name, value in sums.reported.items()})
            loss = share(sums.objective)
            losses.append(loss.detach())
            self.engine.backward(loss, is_last=position == len(micro_batches) - 1)
        return reported, torch.stack(losses).sum()

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """A step, in which `run_window` enters the precision's context.

        Args:
            *args: For the stage.
            **kwargs: For the stage.
        """
        assert self.lightning_module is not None
        return self.lightning_module.training_step(*args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """A step, with weights fetched as they are used.

        Args:
            *args: For the stage.
            **kwargs: For the stage.
        """
        assert self.lightning_module is not None
        work = partial(self._in_precision, self.lightning_module.validation_step, *args, **kwargs)
        return work() if self._engine is None else self._engine.call(work)

    def _in_precision(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self.precision_plugin.forward_context():
            return method(*args, **kwargs)

    def backward(self, closure_loss: Tensor, *_: Any, **__: Any) -> Tensor:
        """Nothing: `run_window` has run it.

        Args:
            closure_loss: The loss.
        """
        return closure_loss

    def clip_grad_norm(self, max_norm: float) -> Tensor:
        """As `ZeroEngine.clip_grad_norm`.

        Args:
            max_norm: Largest norm; infinity does not clip.
        """
        return self.engine.clip_grad_norm(max_norm)

    def skip_coming_step(self, is_skipped: Tensor) -> None:
        """As `ZeroEngine.skip_coming_step`.

        Args:
            is_skipped: Whether to skip.
        """
        self.engine.skip_coming_step(is_skipped)

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], *_: Any, **__: Any) -> Any:
        """Compute the gradients, let callbacks and the stage see them, and take DeepSpeed's step.

        Args:
            optimizer: The one inside of DeepSpeed's.
            closure: Computes the gradients.
        """
        assert self.lightning_module is not None
        output = self.precision_plugin._wrap_closure(self.lightning_module, optimizer, closure)
        self.engine.step()
        return output

    def trained_parts(self) -> dict[str, Tensor]:
        """As `ZeroState.trained_parts`."""
        return self.engine.state.trained_parts()

    def whole_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """As `ZeroState.whole_gradients`."""
        return self.engine.state.whole_gradients()

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole weights, in the first process. Every process must call it."""
        if self._engine is None:
            return super().lightning_module_state_dict()
        return self._engine.state.weights(keep=self.is_global_zero)

    def whole_weights(self) -> dict[str, Tensor] | None:
        """The weights of the whole module, in the first process; None in the others. Every process must call it."""
        weights = self.lightning_module_state_dict()
        return weights if self.is_global_zero else None

    def optimizer_state(self, _: Optimizer) -> dict[str, Any]:
        """The whole state, in the first process. Every process must call it."""
        return self.engine.state.optimizer_state(keep=self.is_global_zero)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load the whole model, before or after it is cut.

        Args:
            checkpoint: As it was saved.
            strict: As in `load_state_dict`.
        """
        if self._engine is None:
            super().load_model_state_dict(checkpoint, strict)
        else:
            self._engine.state.load_weights(checkpoint["state_dict"])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's part.

        Args:
            checkpoint: As it was saved.
        """
        (state,) = checkpoint["optimizer_states"]
        self.engine.state.load_optimizer_state(state)

    def teardown(self) -> None:
        """Let go of the engine, whose hooks hold the model."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        super().teardown()
