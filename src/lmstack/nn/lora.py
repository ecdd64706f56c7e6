"""Low-rank adapters: LoRA (arXiv:2106.09685), rsLoRA (arXiv:2312.03732) and DoRA (arXiv:2402.09353)."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class LoRAConfig:
    """What is adapted, and how.

    Attributes:
        rank: Rank r of the update, at least 1.
        alpha: The update is multiplied by alpha / r, under `rslora` by alpha / sqrt(r).
        dropout: Probability, on the adapter's input.
        kind: `lora` adds s B A to a matrix W. `rslora` keeps the update's size when the rank changes. `dora` learns
            the norm of every row of W + s B A as well.
        targets: Names of layers, or their ends, such as `attention.query`; None adapts every linear layer of the
            blocks.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    kind: Literal["lora", "rslora", "dora"] = "lora"
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: A number is out of range.
        """
        if self.rank < 1:
            raise ValueError(f"lora.rank={self.rank}: must be at least 1.")
        if not self.alpha > 0.0:
            raise ValueError(f"lora.alpha={self.alpha}: must be above 0. Twice the rank is usual.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"lora.dropout={self.dropout}: must be in [0, 1).")

    @property
    def scaling(self) -> float:
        """The factor s on B A."""
        return self.alpha / (math.sqrt(self.rank) if self.kind == "rslora" else self.rank)


class LoRALinear(nn.Linear):
    """A linear layer whose matrix is frozen, with an update of low rank that is trained.

    y = (W + s B A) x + b; DoRA: y = m (W + s B A) x / ‖W + s B A‖ + b, the norm of each row taken as a constant in the
    backward pass (arXiv:2402.09353, eq. 5 and section 4.3). B starts at 0, so that the layer starts as it was.

    Args:
        linear: The layer; its weight and bias are shared, not copied, and frozen.
        config: Rank and kind.
    """

    def __init__(self, linear: nn.Linear, config: LoRAConfig) -> None:
        nn.Module.__init__(self)  # not Linear's own, which would draw a weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight.requires_grad_(False), linear.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.lora_a = nn.Parameter(self.weight.detach().new_empty(config.rank, self.in_features))
        self.lora_b = nn.Parameter(self.weight.detach().new_zeros(self.out_features, config.rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.scaling = config.scaling
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.magnitude = nn.Parameter(_row_norms(self._adapted_weight())) if config.kind == "dora" else None
        self.is_enabled = True

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """The layer with its update, or without while it is disabled.

        Args:
            x: Activations.
        """
        # DoRA adds the bias last, enabled or not: the two then agree bit for bit while B is 0.
        bias = None if self.magnitude is not None else self.bias
        out = F.linear(x, self.weight, bias)
        if self.is_enabled:
            out = out + self.scaling * F.linear(F.linear(self.dropout(x), self.lora_a), self.lora_b)
            if self.magnitude is not None:
                out = (out * (self.magnitude / _row_norms(self._adapted_weight()))).to(out.dtype)
        return out if bias is self.bias else (out + self.bias).to(out.dtype)

    @torch.no_grad()
    def _adapted_weight(self) -> Float[Tensor, "O I"]:
        return _adapted(self.weight, self.lora_a, self.lora_b, self.scaling)


def add_lora(module: nn.Module, config: LoRAConfig) -> list[str]:
    """Freeze a module and put adapters, which are trained, on its linear layers.

    Weights keep their names; `<layer>.lora_a`, `.lora_b` and, for DoRA, `.magnitude` come beside them. Put weights in
    first: DoRA starts from their norms.

    Args:
        module: Changed in place.
        config: Which layers, rank and kind.

    Returns:
        Names of the layers adapted.

    Raises:
        ValueError: A target is the name of no linear layer, or there are adapters already.
    """
    if has_lora(module):
        raise ValueError("The model has adapters already. Merge them first: merge_lora(model).")
    linears = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    inside = [name for name in linears if "blocks" in name.split(".")]
    chosen = inside if config.targets is None else [n for n in linears if any(_ends(n, t) for t in config.targets)]
    for target in config.targets or ():
        if not any(_ends(name, target) for name in linears):
            known = sorted({".".join(name.split(".")[2:]) for name in inside})
            raise ValueError(f"lora.targets: {target!r} is the name of no linear layer. Layers: {', '.join(known)}.")
    module.requires_grad_(False)
    for name in chosen:
        parent, _, attribute = name.rpartition(".")
        linear = module.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        setattr(module.get_submodule(parent), attribute, LoRALinear(linear, config))
    return chosen


def has_lora(module: nn.Module) -> bool:
    """Whether a module has adapters.

    Args:
        module: The module.
    """
    return any(isinstance(part, LoRALinear) for part in module.modules())


@contextmanager
def lora_disabled(module: nn.Module) -> Iterator[None]:
    """Within the block the module computes what it did before adapters were put on: a frozen reference for free.

    Args:
        module: One with adapters.
    """
    layers = [part for part in module.modules() if isinstance(part, LoRALinear)]
    were_enabled = [layer.is_enabled for layer in layers]
    try:
        for layer in layers:
            layer.is_enabled = False
        yield
    finally:
        for layer, was_enabled in zip(layers, were_enabled, strict=True):
            layer.is_enabled = was_enabled


@torch.no_grad()
def merge_lora(module: nn.Module) -> None:
    """Put every adapter's update into its matrix, and plain linear layers in place.

    Args:
        module: Changed in place; all its parameters can be trained afterwards.
    """
    for name, layer in list(module.named_modules()):
        if isinstance(layer, LoRALinear):
            parts = {n: getattr(layer, n) for n in ("lora_a", "lora_b", "magnitude")}
            weight = merged_weight(layer.weight, **parts, scaling=layer.scaling)
            with torch.device("meta"):
                plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            plain.weight, plain.bias = nn.Parameter(weight), layer.bias
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, plain)
    module.requires_grad_(True)


@torch.no_grad()
def merged_state(state: Mapping[str, Tensor], config: LoRAConfig) -> dict[str, Tensor]:
    """The state of a module with adapters as that of one without, that computes the same.

    Args:
        state: With `<layer>.lora_a` and so on beside `<layer>.weight`.
        config: That of the adapters.
    """
    merged = {name: tensor for name, tensor in state.items() if not is_adapter(name)}
    for name in state:
        if name.endswith(".lora_a"):
            layer = name.removesuffix(".lora_a")
            merged[f"{layer}.weight"] = merged_weight(
                state[f"{layer}.weight"],
                state[name],
                state[f"{layer}.lora_b"],
                state.get(f"{layer}.magnitude"),
                scaling=config.scaling,
            )
    return merged


def merged_weight(
    weight: Float[Tensor, "O I"],
    lora_a: Float[Tensor, "R I"],
    lora_b: Float[Tensor, "O R"],
    magnitude: Float[Tensor, " O"] | None,
    *,
    scaling: float,
) -> Float[Tensor, "O I"]:
    """W + s B A, with its rows at the norm `magnitude` where there is one.

    Args:
        weight: W.
        lora_a: A.
        lora_b: B.
        magnitude: DoRA's m; None leaves the norms.
        scaling: s.
    """
    merged = _adapted(weight, lora_a, lora_b, scaling)
    if magnitude is not None:
        merged = merged * (magnitude / _row_norms(merged))[:, None]
    return merged.to(weight.dtype)


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter.

    Args:
        name: Of the parameter.
    """
    return name.rpartition(".")[2] in ("lora_a", "lora_b", "magnitude")


def _adapted(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float) -> Tensor:
    with torch.autocast(weight.device.type, enabled=False):
        return weight + scaling * (lora_b @ lora_a)


def _row_norms(weight: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(weight.detach(), dim=1)
    return norms


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
