"""Matrix products of the blocks in float8, by torchao: for GPUs that multiply it."""

from importlib.util import find_spec
from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

MIN_CAPABILITY = (8, 9)
"""Ada and Hopper; earlier GPUs have no float8 products."""


class Float8(MixedPrecision):
    """`bf16-mixed`, with the linear layers inside blocks in float8, scaled by the largest number of each tensor
    (Micikevicius et al. 2022, arXiv:2209.05433). Weights, gradients and optimizer state stay float32.

    Raises:
        ValueError: The GPU cannot, or torchao is not installed.
    """

    def __init__(self) -> None:
        if reason := why_not_here():
            raise ValueError(f"precision=fp8: {reason}. Use precision=bf16_mixed.")
        super().__init__("bf16-mixed", "cuda")

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Replace the linear layers inside blocks; their weights and names stay.

        Args:
            module: The stage, changed in place.

        Raises:
            ValueError: The stage does more with its layers than to train them.
        """
        return convert(module)


def why_not_here() -> str | None:
    """Why this machine does not multiply float8; None where it does."""
    if not torch.cuda.is_available():
        return "needs a CUDA device"
    if (capability := torch.cuda.get_device_capability()) < MIN_CAPABILITY:
        name, least = torch.cuda.get_device_name(), ".".join(map(str, MIN_CAPABILITY))
        return f"{name} has compute capability {capability[0]}.{capability[1]}, and float8 needs {least}"
    if find_spec("torchao") is None:
        return "needs torchao: pip install 'lmstack[fp8]'"
    return None


def convert(module: nn.Module, **options: Any) -> nn.Module:
    """The linear layers inside blocks, replaced by torchao's.

    Args:
        module: The stage, changed in place.
        **options: Of `torchao.float8.Float8LinearConfig`.

    Raises:
        ValueError: The stage does more with its layers than to train them.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    if getattr(module, "lora", None) is not None:
        raise ValueError("precision=fp8 with model.lora: not supported. Use precision=bf16_mixed.")
    if not getattr(module, "automatic_optimization", True):
        raise ValueError(
            f"precision=fp8 with {type(module).__name__}, which samples from the model that it trains: not supported. "
            "Use precision=bf16_mixed."
        )
    convert_to_float8_training(module, config=Float8LinearConfig(**options), module_filter_fn=is_converted)
    return module


def is_converted(module: nn.Module, name: str) -> bool:
    """Whether a layer is replaced: a linear one inside a block whose sides are multiples of 16, as the kernels want.

    Args:
        module: A layer.
        name: Where it is.
    """
    is_inside = "blocks" in name.split(".")
    return type(module) is nn.Linear and is_inside and module.in_features % 16 == module.out_features % 16 == 0
