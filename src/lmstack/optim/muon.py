"""Muon for hidden matrices and AdamW for everything else, as one optimizer."""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.adamw import adamw

NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_EPS = 1e-7


def orthogonalize(
    matrices: Float[Tensor, "*B M N"], *, num_iterations: int, dtype: torch.dtype = torch.bfloat16
) -> Float[Tensor, "*B M N"]:
    """Each matrix with its singular values replaced by values near 1 (between about 0.7 and 1.2).

    The quintic Newton-Schulz iteration of Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.

    Args:
        matrices: One matrix, or several of the same shape.
        num_iterations: Newton-Schulz iterations.
        dtype: Type of the arithmetic.

    Returns:
        Matrices in `dtype`; a zero matrix stays zero.
    """
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    x = matrices.to(dtype)
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=NEWTON_SCHULZ_EPS)
    fused_product = torch.addmm if x.ndim == 2 else torch.baddbmm
    for _ in range(num_iterations):
        gram = x @ x.mT
        polynomial = fused_product(gram, gram, gram, beta=b, alpha=c)
        x = fused_product(x, polynomial, x, beta=a)
    return x.mT if is_tall else x


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer whose groups say, by `algorithm`, how they are updated.

    A `muon` group holds matrices and has `momentum`, `nesterov`, `num_iterations`, `adjust_lr`; an `adamw` group has
    `betas`, `eps`, `fused`. All have `lr` and `weight_decay` (decoupled).

    Args:
        groups: Parameter groups with these keys.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Args:
            closure: Computes the loss and the gradients first.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["algorithm"] == "muon":
                self._muon(group)
            else:
                self._adamw(group)
        return loss

    def _muon(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        grads: list[Tensor] = [p.grad for p in params]
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(buffers, grads, 1.0 - group["momentum"])
        updates = torch._foreach_lerp(grads, buffers, group["momentum"]) if group["nesterov"] else buffers
        torch._foreach_mul_(params, 1.0 - group["lr"] * group["weight_decay"])
        by_shape = defaultdict(list)
        for p, update in zip(params, updates, strict=True):
            by_shape[p.shape].append((p, update))
        for shape, members in by_shape.items():
            rate = group["lr"] * lr_adjustment(group["adjust_lr"], shape[-2], shape[-1])
            for p, update in members:
                p.add_(orthogonalize(update, num_iterations=group["num_iterations"]), alpha=-rate)

    def _adamw(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        for p in params:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros((), device=p.device if group["fused"] else "cpu")
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        beta1, beta2 = group["betas"]
        adamw(
            params,
            [p.grad for p in params],
            [self.state[p]["exp_avg"] for p in params],
            [self.state[p]["exp_avg_sq"] for p in params],
            [],
            [self.state[p]["step"] for p in params],
            fused=group["fused"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def lr_adjustment(rule: str, num_rows: int, num_columns: int) -> float:
    """The factor on Muon's learning rate for a matrix of this shape.

    Args:
        rule: `original`, sqrt(max(1, rows / columns)): the same spectral norm relative to the shape; or
            `match_rms_adamw`, 0.2 sqrt(max(rows, columns)): AdamW's typical root mean square (arXiv:2502.16982).
        num_rows: Outputs.
        num_columns: Inputs.

    Returns:
        A positive number.
    """
    if rule == "original":
        return math.sqrt(max(1.0, num_rows / num_columns))
    return 0.2 * math.sqrt(max(num_rows, num_columns))
