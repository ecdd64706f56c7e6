"""A config's choices, turned into parts."""

import pytest

from lmstack.models.config import AttentionConfig
from lmstack.models.parts import layer_windows
from tiny_transformer import config


@pytest.mark.parametrize(
    ("full_every", "expected"),
    [(None, [3, 3, 3, 3, 3]), (2, [3, None, 3, None, 3]), (3, [3, 3, None, 3, 3]), (1, [None] * 5)],
)
def test_the_last_layer_of_each_group_sees_everything(full_every: int | None, expected: list[int | None]) -> None:
    assert layer_windows(config(num_layers=5, attention=AttentionConfig(window=3, full_every=full_every))) == expected
