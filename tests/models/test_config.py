"""The config's round trip and refusals."""

import pytest

from lmstack.models import TransformerConfig
from lmstack.models.config import (
    AttentionConfig,
    LearnedConfig,
    Llama3Scaling,
    MuPInit,
    NormConfig,
    RotaryConfig,
    YarnScaling,
)
from tiny_transformer import config


@pytest.mark.parametrize(
    "shape",
    [
        config(),
        config(positions=RotaryConfig(5e5, Llama3Scaling()), head_dim=16),
        config(positions=RotaryConfig(scaling=YarnScaling(4.0, 128)), attention=AttentionConfig(window=4)),
        config(positions=LearnedConfig(), norm=NormConfig("layer", bias=True), initialization=MuPInit(32, 8)),
    ],
)
def test_a_config_comes_back_from_its_dictionary(shape: TransformerConfig) -> None:
    assert TransformerConfig.from_dict(shape.to_dict()) == shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 33}, r"dim=33 is not a multiple of num_heads=4\. Use dim=32"),
        ({"num_kv_heads": 3}, r"num_kv_heads=3 does not divide num_heads=4\. Use one of \[1, 2, 4\]"),
        ({"head_dim": 7}, "head_dim=7 is odd"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"num_layers": 0}, "num_layers=0: must be at least 1"),
        ({"norm": NormConfig(placement="post"), "parallel_residual": True}, "parallel_residual"),
    ],
    ids=str,
)
def test_a_shape_that_cannot_be_is_refused_with_one_that_can(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_contradictions_between_options_are_refused() -> None:
    with pytest.raises(ValueError, match="an RMS norm has no bias"):
        NormConfig("rms", bias=True)
    with pytest.raises(ValueError, match=r"no effect without attention\.window"):
        AttentionConfig(full_every=2)
    with pytest.raises(ValueError, match="window=0"):
        AttentionConfig(window=0)


def test_unknown_names_and_kinds_are_refused_by_name() -> None:
    values = config().to_dict()
    with pytest.raises(ValueError, match="transformer has no field 'dmi'"):
        TransformerConfig.from_dict({**values, "dmi": 3})
    with pytest.raises(ValueError, match=r"transformer\.positions\.kind='rope': must be one of rotary, learned"):
        TransformerConfig.from_dict({**values, "positions": {"kind": "rope"}})
    with pytest.raises(ValueError, match=r"missing.*'dim'"):
        TransformerConfig.from_dict({name: value for name, value in values.items() if name != "dim"})
