"""Sharded, tensor and pipeline parallelism in any combination, on one mesh of devices."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.utilities.distributed import _sync_ddp_if_available
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.strategy import Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.optim import Optimizer

from lmstack.models import Transformer
from lmstack.models.initial_weights import initial_weights
from lmstack.optim.gradient_clipping import GradientsElsewhere
from lmstack.parallel.filling import Stored, fill
from lmstack.parallel.float8 import Float8
from lmstack.parallel.gathering import copy_from_first
from lmstack.parallel.layout import DIMENSIONS, Layout, Size, layout_of
from lmstack.parallel.pipeline import Pipeline, ScheduleName
from lmstack.parallel.sharded_state import without_tensors
from lmstack.parallel.sharding import put_back, shard
from lmstack.parallel.tensor_parallel import split_layers
from lmstack.parallel.whole_checkpoint import WholeModel


class MeshStrategy(ModelParallelStrategy):
    """Processes on a mesh of up to four dimensions: pipeline, replicas, shards, tensor.

    `shards` alone is FSDP2 (ZeRO-3), with `replicas` it is hybrid sharding; `tensor` splits every layer; `pipeline`
    gives each process some of the layers. Checkpoints hold the whole model, in the format of one process, and load
    under any other strategy and number of processes.
    A transformer without weights (`deferred_weights`) gets its values when it is cut, each process its part of them.

    Args:
        shards: Parts of the weights, each gathered when needed. `auto`, for one of the four sizes, takes what is left.
        replicas: Copies of the weights.
        tensor: Parts of every layer.
        pipeline: Groups of layers.
        sequence_parallel: With `tensor`, share out positions too, between the matrix products.
        schedule: Order of a pipeline's forwards and backwards: all forwards first (`gpipe`, arXiv:1811.06965), each
            backward as soon as it can (`1f1b`, arXiv:2104.04473), or that with several groups of layers a process
            (`interleaved_1f1b`, the same, section 2.2).
        stages_per_process: Groups of layers of a process, with `interleaved_1f1b`.
    """

    def __init__(
        self,
        *,
        shards: Size = 1,
        replicas: Size = 1,
        tensor: Size = 1,
        pipeline: Size = 1,
        sequence_parallel: bool = False,
        schedule: ScheduleName = "1f1b",
        stages_per_process: int = 1,
    ) -> None:
        super().__init__(save_distributed_checkpoint=False)
        self._sizes: dict[str, Size] = {
            "pipeline": pipeline,
            "replicas": replicas,
            "shards": shards,
            "tensor": tensor,
        }
        if sequence_parallel and tensor == 1:
            raise ValueError("trainer.strategy.sequence_parallel=true has no effect with tensor=1. Leave it out.")
        if sequence_parallel and pipeline != 1:
            raise ValueError("trainer.strategy: sequence_parallel with a pipeline is not supported. Leave one out.")
        if (stages_per_process > 1) != (schedule == "interleaved_1f1b"):
            raise ValueError(
                f"trainer.strategy.stages_per_process={stages_per_process} with schedule={schedule}: several stages a "
                "process are what interleaved_1f1b is for, and it needs them. Set stages_per_process=2 with it, 1 else."
            )
        self.sequence_parallel = sequence_parallel
        self.schedule: ScheduleName = schedule
        self.stages_per_process = stages_per_process
        self.layout = Layout()
        self._pipeline: Pipeline | None = None
        self._whole_model: WholeModel | None = None
        self._stored: Stored | None = None
        self._prepared: L.LightningModule | None = None

    # ---- processes ------------------------------------------------------------------------------------------------

    def setup_environment(self) -> None:
        """Connect the processes and lay them out."""
        Strategy.setup_environment(self)
        self._setup_distributed()
        if self._device_mesh is None:
            self.layout = layout_of(self.world_size, **self._sizes)
            self._device_mesh = init_device_mesh(self.root_device.type, self.layout.sizes, mesh_dim_names=DIMENSIONS)
            self._data_mesh = self._device_mesh["replicas", "shards"]._flatten("data")
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = self._device_mesh

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int]:
        """This process's place among those that have different data."""
        place = self.layout.coordinates(self.global_rank)
        return {
            "num_replicas": self.layout.data_parallel,
            "rank": place.replicas * self.layout.shards + place.shards,
        }

    @property
    def random_rank(self) -> int:
        """Another number for processes that draw other random numbers: not for parts of the same layer."""
        place = self.layout.coordinates(self.global_rank)
        return place.pipeline * self.layout.data_parallel + self.distributed_sampler_kwargs["rank"]

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Reduce over the processes that have different data; the others have the same numbers.

        Args:
            tensor: Reduced in place.
            group: Other processes to reduce over.
            reduce_op: As Lightning names it.
        """
        if not isinstance(tensor, Tensor):
            return tensor
        return _sync_ddp_if_available(tensor, group or self._data_mesh.get_group(), reduce_op=reduce_op)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Agree, over all processes.

        Args:
            decision: This process's.
            all: Whether all must say yes, or any.
        """
        votes = torch.tensor(int(decision), device=self.root_device)
        dist.all_reduce(votes)
        return bool(votes == self.world_size) if all else bool(votes)

    # ---- the model ------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer) -> None:
        """Cut the model, then build the optimizer on what is left of it.

        Args:
            trainer: The trainer.
        """
        assert self.accelerator is not None
        assert self.model is not None
        self.accelerator.setup(trainer)
        if self._prepared is not self.lightning_module:
            self._check_module()
            self._cut()
            self._prepared = self.lightning_module
        self.model_to_device()
        self.barrier()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        else:
            self._stored = None
        self.setup_precision_plugin()
        if trainer.state.fn == TrainerFn.FITTING:
            _optimizers_to_device(self.optimizers, self.root_device)

    def _check_module(self) -> None:
        module = self.lightning_module
        assert module is not None
        name = type(module).__name__
        if not module.automatic_optimization:
            raise ValueError(f"{name} samples from the model it trains, which must be whole. Use strategy=ddp.")
        if getattr(module, "lora", None) is not None:
            raise ValueError("model.lora: adapters fit on one device with the model they adapt. Use strategy=ddp.")
        transformers = [part for part in module.modules() if isinstance(part, Transformer)]
        if len(transformers) != 1:
            raise ValueError(f"{name} has {len(transformers)} transformers; only one can be cut. Use strategy=ddp.")
        covered = {id(p) for p in transformers[0].parameters()}
        outside = [n for n, p in module.named_parameters() if p.requires_grad and id(p) not in covered]
        if outside:
            raise ValueError(f"{name} trains {outside[0]}, which is outside the transformer. Use strategy=ddp.")
        precision = str(module.trainer.precision)
        if precision not in ("32-true", "64-true", "bf16-mixed", "bf16-true"):
            raise ValueError(f"trainer.precision={precision} with this strategy: use 32-true, bf16-mixed or bf16-true.")
        if isinstance(self.precision_plugin, Float8) and (self.layout.tensor > 1 or self.layout.pipeline > 1):
            raise ValueError("precision=fp8 with tensor or pipeline above 1 is not supported. Use strategy=fsdp2.")

    def _cut(self) -> None:
        module = self.lightning_module
        assert module is not None
        mesh, layout = self.device_mesh, self.layout
        self.model = self.precision_plugin.convert_module(module)
        (transformer,) = (part for part in module.modules() if isinstance(part, Transformer))
        is_empty = transformer.embedding.weight.is_meta
        if not is_empty:
            copy_from_first([p.data for p in module.parameters()], self.root_device)
        self._whole_model = WholeModel([name for name, _ in module.named_parameters()], list(module.state_dict()))
        if layout.tensor > 1:
            split_layers(transformer, mesh["tensor"], sequence_parallel=self.sequence_parallel)
        if layout.pipeline > 1:
            self._pipeline = Pipeline(
                module,
                transformer,
                mesh,
                self.schedule,
                self.stages_per_process,
                self.precision_plugin.forward_context,
            )
        if layout.data_parallel > 1:
            roots: Sequence[torch.nn.Module] = [transformer] if self._pipeline is None else self._pipeline.chunks
            for root in roots:
                shard(root, mesh["shards"] if layout.replicas == 1 else mesh["replicas", "shards"])
        if is_empty:
            transformer.to_empty(device=self.root_device)
        if is_empty or (self._stored is not None and self._stored.shards is not None):
            self._fill(transformer)

    def _fill(self, transformer: Transformer) -> None:
        """Give a model that is cut its values, of a checkpoint or of the start."""
        assert self.lightning_module is not None
        if self._stored is not None:
            self._stored.fill(self.lightning_module)
            return
        random_state = self.broadcast(transformer.random_state)
        assert random_state is not None
        fill(transformer, initial_weights(transformer.config, random_state))

    # ---- steps ----------------------------------------------------------------------------------------------------

    @property
    def run_window(self) -> Callable[..., Any] | None:
        """Where a pipeline runs forwards and backwards of a step; None lets the stage do it."""
        return None if self._pipeline is None else self._pipeline.run_window

    @property
    def gradients_elsewhere(self) -> GradientsElsewhere | None:
        """What the gradient's norm must know of a pipeline's other stages."""
        return None if self._pipeline is None else self._pipeline.gradients_elsewhere

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """A step; a pipeline enters the precision's context for forwards only.

        Args:
            *args: For the stage.
            **kwargs: For the stage.
        """
        if self._pipeline is None:
            return super().training_step(*args, **kwargs)
        assert self.lightning_module is not None
        return self.lightning_module.training_step(*args, **kwargs)

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """The backward pass, unless the pipeline has run it.

        Args:
            closure_loss: The loss.
            optimizer: Ignored.
            *args: For the precision plugin.
            **kwargs: For the precision plugin.
        """
        if self._pipeline is not None:
            return closure_loss
        return super().backward(closure_loss, optimizer, *args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """A step, after which nothing stays gathered.

        Args:
            *args: For the stage.
            **kwargs: For the stage.
        """
        return self._without_leftovers(super().validation_step, *args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """As `validation_step`.

        Args:
            *args: For the stage.
            **kwargs: For the stage.
        """
        return self._without_leftovers(super().test_step, *args, **kwargs)

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """As `validation_step`; not with a pipeline.

        Args:
            *args: For the stage.
            **kwargs: For the stage.

        Raises:
            ValueError: The layers are in different processes.
        """
        if self._pipeline is not None:
            raise ValueError("predict with a pipeline is not supported. Use strategy=fsdp2 or a single device.")
        return self._without_leftovers(super().predict_step, *args, **kwargs)

    def _without_leftovers(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = step(*args, **kwargs)
        assert self.model is not None
        put_back(self.model)
        return output

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    saves_shards = True
    """Whether each process can write its own part of a checkpoint."""

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """No: weights are read into the whole model, which is then cut."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Yes, from the state of the whole model."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """This process's part; `save_checkpoint` makes it whole."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """This process's part; `save_checkpoint` makes it whole.

        Args:
            optimizer: Whose state.
        """
        return Strategy.optimizer_state(self, optimizer)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the checkpoint, in every process; what is in shards later, and then only this process's part.

        Args:
            checkpoint_path: The folder.
            weights_only: As Lightning means it.
        """
        self._stored = Stored(self.checkpoint_io, checkpoint_path, weights_only)
        return self._stored.checkpoint

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load the whole model now, or this process's part as soon as it is cut.

        Args:
            checkpoint: As it was saved.
            strict: As in `load_state_dict`.
        """
        module = self.lightning_module
        assert module is not None
        assert self._stored is not None
        if self._prepared is module:
            self._stored.fill(module)
        elif self._stored.shards is None and not any(p.is_meta for p in module.parameters()):
            Strategy.load_model_state_dict(self, checkpoint, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's part.

        Args:
            checkpoint: As it was saved.
        """
        assert self._stored is not None
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(self._stored.optimizer_state(state, optimizer))
        self._stored = None

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Gather everything in the first process, which writes it in the format of one process; or write shards.

        Args:
            checkpoint: Of this process's part.
            filepath: The folder.
            storage_options: For the writer.
        """
        if getattr(self.checkpoint_io, "sharded", False):
            small, tensors = without_tensors(checkpoint)
            self.checkpoint_io.save_sharded(self._whole(small), tensors, filepath)  # type: ignore[attr-defined]
            return
        whole = self._whole(checkpoint)
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(whole, filepath, storage_options=storage_options)

    def whole_weights(self) -> dict[str, Tensor] | None:
        """The weights of the whole module, in the first process; None in the others. Every process must call it."""
        state: dict[str, Tensor] = self._whole({"state_dict": self.lightning_module_state_dict()})["state_dict"]
        return state if self.is_global_zero else None

    def _whole(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        assert self._whole_model is not None
        return self._whole_model.checkpoint(checkpoint, self.device_mesh, self.layout)
