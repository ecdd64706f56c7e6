"""Activation checkpointing: which activations of a block are kept for the backward pass, and which computed again.

What is computed again has the same bits: the random state is put back first, so dropout drops the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts


@dataclass(frozen=True)
class FullCheckpointing:
    """Keep the input of every block and nothing in it (Chen et al. 2016, arXiv:1604.06174): a third more compute."""

    kind: Literal["full"] = "full"


@dataclass(frozen=True)
class BlockCheckpointing:
    """Keep nothing in some blocks and everything in the others.

    Attributes:
        every: Every so many blocks, one keeps nothing; at least 2.
    """

    every: int
    kind: Literal["blocks"] = "blocks"

    def __post_init__(self) -> None:
        """Check the range."""
        if self.every < 2:
            raise ValueError(f"activation_checkpointing.every={self.every}: must be 2 or more. For all, kind=full.")


@dataclass(frozen=True)
class MatmulCheckpointing:
    """Keep the results of matrix products and of attention, which cost most to compute, and nothing else.

    "Selective recomputation" of Korthikanti et al. 2022, arXiv:2205.05198, section 5, turned around: a fused attention
    kernel keeps little, and what is computed again is the element-wise rest.
    """

    kind: Literal["matmuls"] = "matmuls"


@dataclass(frozen=True)
class BudgetCheckpointing:
    """Let the compiler choose, block by block, what to compute again so that the rest fits a budget.

    Attributes:
        fraction: Of what is kept without checkpointing, in (0, 1).
    """

    fraction: float
    kind: Literal["budget"] = "budget"

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0.0 < self.fraction < 1.0:
            raise ValueError(
                f"activation_checkpointing.fraction={self.fraction}: must be between 0 (kind=full) and 1 (null)."
            )


ActivationCheckpointing = FullCheckpointing | BlockCheckpointing | MatmulCheckpointing | BudgetCheckpointing
_KINDS: dict[str, type] = {
    "full": FullCheckpointing,
    "blocks": BlockCheckpointing,
    "matmuls": MatmulCheckpointing,
    "budget": BudgetCheckpointing,
}

_aten = torch.ops.aten
_KEPT = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.higher_order.flex_attention,
}
"""Not batched products: without a fused kernel those are the scores of attention, T x T numbers a head."""


def read_choice(values: dict[str, Any] | None) -> ActivationCheckpointing | None:
    """A choice from plain values, as a config has them.

    Args:
        values: `kind` and its fields; None keeps everything.
    """
    if values is None:
        return None
    choice: ActivationCheckpointing = _KINDS[values["kind"]](**values)
    return choice


def recomputation(choice: ActivationCheckpointing | None, layer: int) -> Callable[..., Any] | None:
    """What calls a block's computation and lets go of its activations; None keeps them.

    Args:
        choice: How activations are checkpointed.
        layer: Number of the block, from 0.
    """
    if isinstance(choice, MatmulCheckpointing):
        contexts = partial(create_selective_checkpoint_contexts, _policy)
        return partial(checkpoint, use_reentrant=False, context_fn=contexts)
    if isinstance(choice, FullCheckpointing) or (
        isinstance(choice, BlockCheckpointing) and (layer + 1) % choice.every == 0
    ):
        return partial(checkpoint, use_reentrant=False)
    return None


def _policy(_context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def compiler_backend(choice: ActivationCheckpointing | None) -> Any:
    """What `torch.compile` takes as its backend for a block.

    Args:
        choice: How activations are checkpointed.
    """
    if not isinstance(choice, BudgetCheckpointing):
        return "inductor"

    def compile_within_budget(graph: Any, inputs: Any) -> Any:
        from torch._functorch import config
        from torch._inductor.compile_fx import compile_fx

        with config.patch(activation_memory_budget=choice.fraction):
            return compile_fx(graph, inputs)

    return compile_within_budget
