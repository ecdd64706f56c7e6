"""Tensor parallelism of a transformer: every process holds some heads, some hidden units and some of the vocabulary.

Shoeybi et al. 2019, arXiv:1909.08053, section 3; with `sequence_parallel`, between attention and feed-forward each
process has some of the positions instead of all (Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2).
"""

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from lmstack.models.block import Block
from lmstack.models.transformer import Transformer
from lmstack.parallel.limits import check_tensor


def split_layers(transformer: Transformer, mesh: DeviceMesh, *, sequence_parallel: bool) -> None:
    """Leave this process its part of every matrix.

    Args:
        transformer: Changed in place; equal on every process.
        mesh: Of one dimension.
        sequence_parallel: Share out positions between the matrix products, which takes less memory.

    Raises:
        ValueError: The shape cannot be shared out so.
    """
    check_tensor(transformer.config, mesh.size(), sequence_parallel=sequence_parallel)
    stream = Shard(1) if sequence_parallel else Replicate()
    blocks = [block for block in transformer.blocks if isinstance(block, Block)]
    for block in blocks:
        parallelize_module(block, mesh, _plan(block, stream, sequence_parallel))
    if sequence_parallel:
        blocks[0].register_forward_pre_hook(_check_length(mesh.size()))
        whole, nothing = Replicate(), (None, None)
        enter = PrepareModuleInput(
            input_layouts=(whole, *nothing), desired_input_layouts=(Shard(1), *nothing), use_local_output=True
        )
        leave = PrepareModuleOutput(output_layouts=(Shard(1),), desired_output_layouts=(whole,))
        parallelize_module(blocks[0], mesh, enter)
        parallelize_module(blocks[-1], mesh, leave)
    _split_vocabulary(transformer, mesh)


def _plan(block: Block, stream: Shard | Replicate, sequence_parallel: bool) -> dict[str, ParallelStyle]:
    rest = (None, None, None)
    plan: dict[str, ParallelStyle] = {
        "attention": PrepareModuleInput(
            input_layouts=(stream, *rest), desired_input_layouts=(Replicate(), *rest), use_local_output=False
        ),
        "attention.query": ColwiseParallel(),
        "attention.key": ColwiseParallel(),
        "attention.value": ColwiseParallel(),
        "attention.output": RowwiseParallel(output_layouts=stream),
        "feed_forward": PrepareModuleInput(
            input_layouts=(stream,), desired_input_layouts=(Replicate(),), use_local_output=False
        ),
        "feed_forward.up": ColwiseParallel(),
        "feed_forward.down": RowwiseParallel(output_layouts=stream),
    }
    if block.feed_forward.gate is not None:
        plan["feed_forward.gate"] = ColwiseParallel()
    if block.attention.query_norm is not None:
        # Each process normalizes its own heads with the same gain, whose gradient is then the sum over processes.
        plan["attention.query_norm"] = SequenceParallel(sequence_dim=2, use_local_output=True)
        plan["attention.key_norm"] = SequenceParallel(sequence_dim=2, use_local_output=True)
    if sequence_parallel:
        norms = ("attention_norm", "feed_forward_norm", "attention_output_norm", "feed_forward_output_norm")
        present = [name for name in norms if any(True for _ in _parameters(block, name))]
        plan |= {name: SequenceParallel(use_local_output=True) for name in present}
    return plan


def _parameters(block: Block, name: str) -> list[nn.Parameter]:
    module = getattr(block, name)
    return [] if module is None else list(module.parameters())


def _split_vocabulary(transformer: Transformer, mesh: DeviceMesh) -> None:
    if isinstance(transformer.embedding, nn.Embedding):
        parallelize_module(
            transformer, mesh, {"embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate())}
        )
    if isinstance(getattr(transformer, "head", None), nn.Linear):
        transformer.head.weight = _by_rows(transformer.head.weight, mesh)
    if transformer.head_bias is not None:
        transformer.head_bias = _by_rows(transformer.head_bias, mesh)


def _by_rows(parameter: Tensor, mesh: DeviceMesh) -> nn.Parameter:
    return nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)]), requires_grad=parameter.requires_grad)


def _check_length(size: int) -> Any:
    def check(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
        length = arguments[0].shape[1]
        if length % size:
            raise ValueError(
                f"sequence_parallel shares out {length} positions over {size} processes, which does not go evenly. "
                "Use a sequence length that divides, or sequence_parallel=false."
            )

    return check
