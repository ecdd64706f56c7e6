import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmstack.parallel.layout import Layout, layout_of

ONE: dict[str, Any] = {"pipeline": 1, "replicas": 1, "shards": 1, "tensor": 1}


def test_the_open_size_takes_what_is_left() -> None:
    assert layout_of(16, **ONE | {"tensor": 2, "shards": "auto"}) == Layout(shards=8, tensor=2)
    assert layout_of(8, **ONE | {"pipeline": 2, "replicas": 2, "tensor": "auto"}) == Layout(2, 2, 1, 2)
    assert layout_of(1, **ONE | {"shards": "auto"}) == Layout()


@pytest.mark.parametrize(
    ("world_size", "sizes", "message"),
    [
        (8, {"tensor": 3, "shards": "auto"}, r"tensor=3 does not make 8 processes"),
        (8, {"tensor": 4}, r"does not make 8 processes"),
        (8, {"tensor": "auto", "shards": "auto"}, r"only one may be auto"),
        (8, {"tensor": 0, "shards": "auto"}, r"must be 1 or more"),
    ],
)
def test_sizes_that_do_not_multiply_to_the_processes_are_refused(
    world_size: int, sizes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        layout_of(world_size, **ONE | sizes)


def test_tensor_neighbours_are_neighbours_in_rank() -> None:
    layout = Layout(pipeline=2, replicas=1, shards=2, tensor=2)
    assert [layout.coordinates(rank).tensor for rank in range(8)] == [0, 1] * 4
    assert [layout.coordinates(rank).shards for rank in range(8)] == [0, 0, 1, 1] * 2
    assert [layout.coordinates(rank).pipeline for rank in range(8)] == [0] * 4 + [1] * 4


@given(st.tuples(*[st.integers(1, 4)] * 4))
def test_every_process_has_a_place_of_its_own(sizes: tuple[int, int, int, int]) -> None:
    layout = Layout(*sizes)
    assert len({layout.coordinates(rank) for rank in range(math.prod(sizes))}) == math.prod(sizes)
