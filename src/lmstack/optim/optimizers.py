"""Optimizers as configs, and how they are built for a transformer."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lmstack.optim.master_weights import MasterWeights
from lmstack.optim.muon import MuonAdamW
from lmstack.optim.parameter_groups import HIDDEN_GROUP, parameter_groups


@dataclass(frozen=True)
class AdamWConfig:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv:1711.05101), fused where torch can.

    Attributes:
        lr: Peak learning rate. Under muP, that of hidden matrices is multiplied by base width / width.
        betas: Decay rates of the running means of the gradient and its square.
        eps: Added to the denominator.
        weight_decay: Of matrices; a step multiplies them by 1 - lr * weight_decay.
        decay_embeddings: Decay embedding tables (and a head tied to one) as well.
        master_weights: Update float32 copies of bfloat16 weights; for precision=bf16-true.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_embeddings: bool = False
    master_weights: bool = False
    kind: Literal["adamw"] = "adamw"

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_positive("optimizer.lr", self.lr)
        _check_adamw(self.betas, self.eps, self.weight_decay)


@dataclass(frozen=True)
class MuonConfig:
    """Muon (https://kellerjordan.github.io/posts/muon/) for the matrices inside blocks, AdamW for everything else.

    Attributes:
        lr: Peak learning rate of Muon.
        adamw_lr: Peak learning rate of the rest.
        momentum: Decay rate of Muon's running mean of the gradient.
        adjust_lr: How Muon's learning rate depends on a matrix' shape: `original`, sqrt(max(1, rows / columns)), or
            `match_rms_adamw`, 0.2 sqrt(max(rows, columns)), with which AdamW's learning rates carry over
            (Liu et al. 2025, arXiv:2502.16982).
        weight_decay: Of matrices, under Muon and AdamW; a step multiplies them by 1 - lr * weight_decay.
        betas: AdamW's decay rates.
        eps: Added to AdamW's denominator.
        decay_embeddings: Decay embedding tables (and a head tied to one) as well.
        master_weights: Update float32 copies of bfloat16 weights; for precision=bf16-true.
    """

    lr: float
    adamw_lr: float
    momentum: float = 0.95
    adjust_lr: Literal["original", "match_rms_adamw"] = "original"
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    decay_embeddings: bool = False
    master_weights: bool = False
    kind: Literal["muon"] = "muon"

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_positive("optimizer.lr", self.lr)
        _check_positive("optimizer.adamw_lr", self.adamw_lr)
        _check_adamw(self.betas, self.eps, self.weight_decay)
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"optimizer.momentum={self.momentum}: must be in [0, 1). 0.95 is usual.")


def build_optimizer(
    config: AdamWConfig | MuonConfig, transformer: nn.Module, *, module: nn.Module | None = None
) -> torch.optim.Optimizer:
    """The optimizer of a transformer's trainable parameters.

    Args:
        config: Which one, and its numbers.
        transformer: A module with `blocks`, and a `config` that names its width and initialization.
        module: What holds the trainable parameters, when there are more than the transformer's own.

    Returns:
        An optimizer whose groups have `name`s; see `parameter_groups`.

    Raises:
        ValueError: Muon is asked for and no matrix inside `blocks` is trainable, or copies of weights that need none.
    """
    width_ratio = _width_ratio(transformer)
    module = module or transformer
    if isinstance(config, AdamWConfig):
        groups = parameter_groups(
            module,
            lr=config.lr,
            weight_decay=config.weight_decay,
            decay_embeddings=config.decay_embeddings,
            hidden_lr_multiplier=width_ratio,
        )
        groups = [group | {"fused": _can_fuse(group)} for group in groups]
        return _built(partial(_adamw, config), groups, config.master_weights)
    groups = parameter_groups(
        module,
        lr=config.adamw_lr,
        weight_decay=config.weight_decay,
        decay_embeddings=config.decay_embeddings,
    )
    adamw = {"algorithm": "adamw", "betas": config.betas, "eps": config.eps}
    muon = {
        "algorithm": "muon",
        "lr": config.lr * _muon_lr_multiplier(config, width_ratio),
        "momentum": config.momentum,
        "adjust_lr_fn": config.adjust_lr,
    }
    if not any(group["name"] == HIDDEN_GROUP for group in groups):
        raise ValueError("optimizer.kind=muon: no matrix inside `blocks` is trainable. Use optimizer.kind=adamw.")
    groups = [
        group | (muon if group["name"] == HIDDEN_GROUP else adamw | {"fused": _can_fuse(group)}) for group in groups
    ]
    return _built(MuonAdamW, groups, config.master_weights)


def _built(
    build: Callable[[list[dict[str, Any]]], torch.optim.Optimizer], groups: list[dict[str, Any]], master_weights: bool
) -> torch.optim.Optimizer:
    if not master_weights:
        return build(groups)
    dtypes = {parameter.dtype for group in groups for parameter in group["params"]}
    if dtypes != {torch.bfloat16}:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise ValueError(
            f"optimizer.master_weights=true with weights in {names}: it keeps float32 copies of bfloat16 weights. Set "
            "trainer.precision=bf16-true, or master_weights=false."
        )
    return MasterWeights(build, groups)


def _adamw(config: AdamWConfig, groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    is_fused = all(group["fused"] for group in groups)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=is_fused)


def _width_ratio(transformer: nn.Module) -> float:
    """Base width / width under muP, else 1."""
    config: Any = transformer.config
    initialization = config.initialization
    return initialization.base_dim / config.dim if initialization.kind == "mup" else 1.0


def _muon_lr_multiplier(config: MuonConfig, width_ratio: float) -> float:
    """What keeps the spectral norm of an update the same share of sqrt(outputs / inputs) at every width.

    An orthogonal update has spectral norm 1; `original` multiplies it by that very root, `match_rms_adamw` by one that
    grows with sqrt(width). See Yang et al. 2023, arXiv:2310.17813.
    """
    return 1.0 if config.adjust_lr == "original" else width_ratio**0.5


def _can_fuse(group: dict[str, Any]) -> bool:
    """One kernel for all parameters: not for some that are sharded and some that are not, or are on another mesh."""
    parameters: list[Tensor] = group["params"]
    is_known = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return is_known and len({getattr(p, "device_mesh", None) for p in parameters}) == 1


def _check_positive(name: str, value: float) -> None:
    if not value > 0.0:
        raise ValueError(f"{name}={value}: must be above 0.")


def _check_adamw(betas: tuple[float, float], eps: float, weight_decay: float) -> None:
    for beta in betas:
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"optimizer.betas={betas}: both must be in [0, 1). (0.9, 0.95) is usual.")
    _check_positive("optimizer.eps", eps)
    if weight_decay < 0.0:
        raise ValueError(f"optimizer.weight_decay={weight_decay}: must not be negative. 0 switches it off.")
