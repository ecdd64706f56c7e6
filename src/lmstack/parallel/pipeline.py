"""A transformer cut into groups of layers that different processes run, micro-batch after micro-batch."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from torch.distributed.tensor import DTensor

from lmstack.data.batch import IGNORE_INDEX, PADDING_DOCUMENT, TokenBatch
from lmstack.models import Transformer
from lmstack.optim.gradient_clipping import GradientsElsewhere
from lmstack.parallel.gathering import local_part
from lmstack.parallel.limits import check_pipeline

ScheduleName = Literal["gpipe", "1f1b", "interleaved_1f1b"]
_Window = tuple[list[dict[str, Tensor]], Tensor]


class Chunk(nn.Module):
    """Some neighbouring layers; the first chunk embeds, the last normalizes and holds the head.

    Args:
        transformer: Whose layers; kept whole elsewhere.
        layers: Which.
        forward_context: Precision of the forward.
    """

    def __init__(
        self, transformer: Transformer, layers: range, forward_context: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        super().__init__()
        self._methods = (transformer.run_layers,)  # in a tuple: the transformer is not a part of this
        self.layers = layers
        self.forward_context = forward_context
        self.window: Sequence[TokenBatch] = ()
        self.is_first = layers.start == 0
        self.is_last = layers.stop == transformer.config.num_layers
        self.blocks = nn.ModuleList(transformer.blocks[layer] for layer in layers)
        self.ends = nn.ModuleDict({name: getattr(transformer, name) for name in self._end_names(transformer)})

    def _end_names(self, transformer: Transformer) -> list[str]:
        names = ["embedding", "position_embedding", "embedding_norm"] if self.is_first else []
        if self.is_last:
            names += ["final_norm", "embedding" if transformer.config.tied_embeddings else "head"]
        return [name for name in dict.fromkeys(names) if hasattr(transformer, name)]

    def forward(self, x: Tensor, index: Int[Tensor, " 1"]) -> Float[Tensor, "B T D"]:
        """What these layers make of a micro-batch.

        Args:
            x: What the chunk before gave; the first one's is not looked at.
            index: Which micro-batch of the window.
        """
        batch = self.window[int(index)]
        with self.forward_context():
            return self._methods[0](
                None if self.is_first else x,
                batch.input_ids,
                self.layers,
                position_ids=batch.position_ids,
                document_ids=batch.document_ids,
            )


class Pipeline:
    """This process's layers, and the order in which micro-batches pass through them.

    The stage's own `loss_sums` runs where the last layers are: `transformer(...)` gives it what has come out of them.

    Args:
        module: The training stage.
        transformer: Its only one; it keeps this process's layers, the others become empty.
        mesh: With a dimension `pipeline`.
        schedule: Order of forwards and backwards.
        stages_per_process: Groups of layers of a process.
        forward_context: Precision of the forward.

    Raises:
        ValueError: The stage or its transformer cannot be cut so.
    """

    def __init__(
        self,
        module: Any,
        transformer: Transformer,
        mesh: DeviceMesh,
        schedule: ScheduleName,
        stages_per_process: int,
        forward_context: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.module, self.mesh, self.schedule_name = module, mesh, schedule
        self.forward_context = forward_context
        self.group = mesh["pipeline"].get_group()
        self.rank, self.size = mesh.get_local_rank("pipeline"), mesh["pipeline"].size()
        self.num_stages = self.size * stages_per_process
        _check(module, transformer, self.num_stages)
        self.transformer = transformer
        num_layers = self.transformer.config.num_layers
        bounds = [num_layers * number // self.num_stages for number in range(self.num_stages + 1)]
        self.numbers = range(self.rank, self.num_stages, self.size)
        self.chunks = [
            Chunk(self.transformer, range(bounds[number], bounds[number + 1]), forward_context)
            for number in self.numbers
        ]
        self._empty_the_rest()
        self.holds_last = self.rank == self.size - 1
        self._tie = _pairs_of_ends(mesh) if self.transformer.config.tied_embeddings else None
        self._hidden: Tensor | None = None
        self._schedules: dict[Any, Any] = {}
        self._current_loss: Callable[[Tensor, Tensor], Tensor] | None = None
        self._loss_sums = module.loss_sums
        self.transformer.forward = self._answer  # type: ignore[method-assign]
        module.loss_sums = self._loss_sums_everywhere

    @property
    def gradients_elsewhere(self) -> GradientsElsewhere:
        """The other processes' layers; a tied embedding is counted where the first layers are."""
        is_copy = self._tie is not None and self.holds_last
        copies: Any = (self.transformer.embedding.weight,) if is_copy else ()
        return GradientsElsewhere(lambda squares: dist.all_reduce(squares, group=self.group), copies)

    def run_window(self, micro_batches: Sequence[TokenBatch], share: Callable[[Tensor], Tensor]) -> _Window:
        """All forwards and backwards of a step.

        Args:
            micro_batches: The same in every process of the pipeline.
            share: Turns the objective of a micro-batch into its share of the step's loss.

        Returns:
            What each micro-batch reports, and the sum of the shares, without a graph.
        """
        window = _alike(micro_batches)
        for chunk in self.chunks:
            chunk.window = window
        told: dict[int, tuple[dict[str, Tensor], Tensor]] = {}

        def loss_of(hidden: Tensor, index: Tensor) -> Tensor:
            number = int(index)
            self._hidden = hidden
            with self.forward_context():
                sums = self._loss_sums(window[number])
                own_share = share(sums.objective)
                reported = {name: value.detach() for name, value in sums.reported.items()}
                told[number] = reported, own_share.detach()
                return own_share

        self._current_loss = loss_of
        schedule = self._schedule(window)
        indices = torch.arange(len(window))
        inputs = (indices,) if self.rank == 0 else ()
        targets = {"target": indices} if self.holds_last else {}
        with torch.autocast(window[0].input_ids.device.type, enabled=False):
            schedule.step(*inputs, index=indices, return_outputs=False, **targets)
        self._hidden = None
        self._add_up_tied_gradients()
        everyone: list[Any] = self._from_last([list(told[n]) for n in range(len(window))] if self.holds_last else None)
        return [reported for reported, _ in everyone], torch.stack([own_share for _, own_share in everyone]).sum()

    # ---- private ----------------------------------------------------------------------------------------------------

    def _answer(self, *_: Any, **__: Any) -> Tensor:
        assert self._hidden is not None, "asked for hidden states outside of a loss"
        return self._hidden

    def _loss_sums_everywhere(self, batch: TokenBatch) -> Any:
        """`loss_sums` of one micro-batch in every process of the pipeline, without gradients."""
        assert not torch.is_grad_enabled()
        index, config = torch.zeros(1, dtype=torch.long), self.transformer.config
        x: Tensor = torch.empty(0)
        for number in range(self.num_stages):
            owner = number % self.size
            if number > 0 and owner == self.rank:
                x = torch.empty(*batch.input_ids.shape, config.dim, dtype=self._stream_dtype(), device=index.device)
                x = x.to(batch.input_ids.device)
                dist.recv(x, group=self.group, group_src=(number - 1) % self.size)
            if owner == self.rank:
                chunk = self.chunks[number // self.size]
                chunk.window = (batch,)
                x = chunk(x, index)
                if number + 1 < self.num_stages:
                    dist.send(x.contiguous(), group=self.group, group_dst=(number + 1) % self.size)
        self._hidden = x
        sums = self._loss_sums(batch) if self.holds_last else None
        return self._from_last(sums)

    def _stream_dtype(self) -> torch.dtype:
        return next(self.chunks[0].parameters()).dtype

    def _from_last(self, value: Any) -> Any:
        """What the process with the last layers has, on every process of the pipeline."""
        device = self.module.device
        box = [_moved(value, torch.device("cpu"))]
        dist.broadcast_object_list(box, group=self.group, group_src=self.size - 1)
        return _moved(box[0], device)

    def _schedule(self, window: Sequence[TokenBatch]) -> Any:
        """A schedule for windows of this size and shape, made once."""
        shape = tuple(window[0].input_ids.shape)
        key = len(window), shape
        if key not in self._schedules:
            if len(window) < self.size or (self.schedule_name == "interleaved_1f1b" and len(window) % self.size):
                raise ValueError(
                    f"A step of {len(window)} micro-batches on a pipeline of {self.size} processes: there must be at "
                    "least as many, and with interleaved_1f1b a multiple. Make data.global_batch_size larger or "
                    "data.micro_batch_size smaller."
                )
            self._schedules[key] = self._new_schedule(len(window), shape, window[0].input_ids.device)
        return self._schedules[key]

    def _new_schedule(self, num_micro_batches: int, shape: tuple[int, ...], device: torch.device) -> Any:
        hidden = torch.empty(*shape, self.transformer.config.dim, device="meta", dtype=self._stream_dtype())
        hidden.requires_grad_()
        stages = [
            PipelineStage(
                chunk,
                number,
                self.num_stages,
                device,
                input_args=torch.zeros(1, dtype=torch.long) if number == 0 else hidden,
                output_args=hidden,
                group=self.group,
            )
            for number, chunk in zip(self.numbers, self.chunks, strict=True)
        ]

        def loss_of(output: Tensor, index: Tensor) -> Tensor:
            assert self._current_loss is not None
            return self._current_loss(output, index)

        options: dict[str, Any] = {"n_microbatches": num_micro_batches, "loss_fn": loss_of, "scale_grads": False}
        if self.schedule_name == "interleaved_1f1b":
            return ScheduleInterleaved1F1B(stages, **options)  # type: ignore[arg-type]
        kind = ScheduleGPipe if self.schedule_name == "gpipe" else Schedule1F1B
        return kind(stages[0], **options)

    def _empty_the_rest(self) -> None:
        """Take away the layers of other processes; the names of the others stay what they are."""
        own = {layer for chunk in self.chunks for layer in chunk.layers}
        for layer in range(self.transformer.config.num_layers):
            if layer not in own:
                self.transformer.blocks[layer] = nn.Identity()
        kept = {name for chunk in self.chunks for name in chunk.ends}
        for name in ("embedding", "position_embedding", "embedding_norm", "final_norm", "head"):
            if hasattr(self.transformer, name) and name not in kept:
                setattr(self.transformer, name, nn.Identity())

    def _add_up_tied_gradients(self) -> None:
        """A tied matrix is used at both ends: each end gets the sum."""
        if self._tie is None or not (self.rank == 0 or self.holds_last):
            return
        matrix: Any = self.transformer.embedding.weight
        if isinstance(matrix, DTensor) and isinstance(matrix.grad, DTensor):  # an embedding's may be laid out otherwise
            matrix.grad = matrix.grad.redistribute(matrix.device_mesh, matrix.placements)
        assert matrix.grad is not None
        dist.all_reduce(local_part(matrix.grad), group=self._tie)


def _check(module: nn.Module, transformer: Transformer, num_stages: int) -> None:
    if not hasattr(module, "loss_sums"):
        raise ValueError(
            f"A pipeline runs stages that predict tokens, not {type(module).__name__}. Use strategy=fsdp2."
        )
    check_pipeline(transformer.config, num_stages)


def _pairs_of_ends(mesh: DeviceMesh) -> Any:
    """The group of the first and the last process of this pipeline; all processes make all of them."""
    dimension = (mesh.mesh_dim_names or ()).index("pipeline")
    ranks = mesh.mesh.movedim(dimension, 0).flatten(1)
    own = None
    for first, last in zip(ranks[0].tolist(), ranks[-1].tolist(), strict=True):
        group = dist.new_group([first, last])
        if dist.get_rank() in (first, last):
            own = group
    return own


def _alike(micro_batches: Sequence[TokenBatch]) -> list[TokenBatch]:
    """The micro-batches padded to one shape: stages know what to expect from each other."""
    if not all(isinstance(batch, TokenBatch) for batch in micro_batches):
        raise ValueError("A pipeline runs stages that predict tokens (pretraining, SFT). Use strategy=fsdp2.")
    num_rows, length = (max(batch.input_ids.shape[axis] for batch in micro_batches) for axis in (0, 1))
    return [_padded(batch, num_rows, length) for batch in micro_batches]


def _padded(batch: TokenBatch, num_rows: int, length: int) -> TokenBatch:
    rows, columns = num_rows - batch.input_ids.shape[0], length - batch.input_ids.shape[1]
    if not rows and not columns:
        return batch

    def pad(values: Tensor, filler: int) -> Tensor:
        return nn.functional.pad(values, (0, columns, 0, rows), value=filler)

    return TokenBatch(
        input_ids=pad(batch.input_ids, 0),
        labels=pad(batch.labels, IGNORE_INDEX),
        document_ids=pad(batch.document_ids, PADDING_DOCUMENT),
        position_ids=pad(batch.position_ids, 0),
        num_bytes=nn.functional.pad(batch.num_bytes, (0, rows)),
    )


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_moved(item, device) for item in value))
    return [_moved(item, device) for item in value] if isinstance(value, list) else value
