"""Initial weights one by one, for a model that is too large to be drawn whole in one place."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lmstack.models.config import TransformerConfig
from lmstack.models.parts import initial_std
from lmstack.models.transformer import Transformer
from lmstack.nn.initialization import fill_normal
from lmstack.nn.norms import RMSNorm


def initial_weights(config: TransformerConfig, random_state: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Every weight of `Transformer(config)` by name, whole, in the order in which it draws them.

    Args:
        config: Everything that decides the initial weights.
        random_state: Of torch's generator on the CPU, when the transformer would have been built.
    """
    generator = torch.Generator()
    generator.set_state(random_state)
    with torch.device("meta"):
        twin = Transformer(config)
    names: dict[Tensor, str] = {parameter: name for name, parameter in twin.named_parameters()}
    std_of = initial_std(config)
    for role, matrix in twin.matrices():
        whole = torch.empty(matrix.shape, dtype=matrix.dtype, device="cpu")
        fill_normal(whole, std_of(role, matrix), generator)
        yield names.pop(matrix), whole
    for parameter, name in names.items():
        owner, _, leaf = name.rpartition(".")
        is_gain = isinstance(twin.get_submodule(owner), RMSNorm | nn.LayerNorm) and leaf == "weight"
        yield name, torch.full(parameter.shape, float(is_gain), dtype=parameter.dtype, device="cpu")
