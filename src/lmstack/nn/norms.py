"""Normalization over channels."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square normalization with a learned gain (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4).

    Args:
        dim: Channels normalized over.
        eps: Added to the mean square.
    """

    def __init__(self, dim: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def reset_parameters(self) -> None:
        """Set the gain to one."""
        nn.init.ones_(self.weight)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Normalize each position.

        Args:
            x: Activations.
        """
        is_sharded = hasattr(self.weight, "device_mesh")  # a DTensor: torch's own operation knows what to do with it
        if x.device.type == "cpu" and not is_sharded and not torch.compiler.is_compiling():
            if not torch.is_grad_enabled():  # decoding would spend a third of its time in Function.apply
                return _normalize(x, self.weight, self.eps)[0]
            return _EagerRMSNorm.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call, no-any-return]
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        """What `print(module)` shows."""
        return f"{self.weight.shape[0]}, eps={self.eps}"


class _EagerRMSNorm(torch.autograd.Function):
    """The same in half the time: on a CPU `F.rms_norm` is a chain of operations, each of which autograd keeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed, inverse = _normalize(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return normed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        wide, gain = x.to(inverse.dtype).flatten(0, -2), weight.to(inverse.dtype)
        grad, inverse = grads[0].to(inverse.dtype).flatten(0, -2), inverse.flatten(0, -2)
        products = grad * wide
        grad_weight = products.T @ inverse[:, 0]
        pull = (products @ gain)[:, None].mul_(inverse.pow(3)).div_(x.shape[-1])
        grad_x = (grad * gain).mul_(inverse).addcmul_(wide, pull, value=-1)
        return grad_x.view_as(x).to(x.dtype), grad_weight.to(weight.dtype), None


def _normalize(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The result, and the inverse root mean square."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean_square: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    inverse = mean_square.add_(eps).rsqrt_()
    return (wide * inverse).mul_(weight).to(x.dtype), inverse


def build_norm(kind: Literal["rms", "layer"], dim: int, *, eps: float, bias: bool) -> RMSNorm | nn.LayerNorm:
    """The normalization layer that a config names.

    Args:
        kind: `rms` or `layer`.
        dim: Channels normalized over.
        eps: Added to the variance.
        bias: A learned offset; only `layer` has one.
    """
    if kind == "rms":
        return RMSNorm(dim, eps=eps)
    return nn.LayerNorm(dim, eps=eps, bias=bias)
