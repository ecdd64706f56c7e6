import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lmstack.models.shard_files import MODULE, OPTIMIZER, names_in, read_shards_into, read_whole

MATRIX = torch.arange(12.0).view(4, 3)
MOMENTS = -MATRIX


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two files, each with some rows of two tensors, and where they begin."""
    for number, rows in enumerate((slice(0, 3), slice(3, 4))):
        tensors = {f"{MODULE}a.w": MATRIX[rows].clone(), f"{OPTIMIZER}a.w.exp_avg": MOMENTS[rows].clone()}
        places = {name: {"saved_offsets": [rows.start, 0]} for name in tensors}
        file = tmp_path / f"shard-0000{number + 1}-model-00001-of-00001.safetensors"
        save_file(tensors, file, metadata={"DCP_SHARDING_INFO": json.dumps(places)})
    return tmp_path


def test_parts_are_put_together_where_they_belong(shards: Path) -> None:
    assert set(read_whole(shards)) == {"module.a.w", "optimizer.a.w.exp_avg"}
    found = read_whole(shards, MODULE)
    assert set(found) == {"a.w"}
    assert torch.equal(found["a.w"], MATRIX)


def test_names_are_found_without_reading_tensors(shards: Path) -> None:
    assert names_in(shards, OPTIMIZER) == {"a.w": ["exp_avg"]}


def test_a_tensor_is_filled_in_place(shards: Path) -> None:
    target = torch.zeros(4, 3)
    read_shards_into(shards, {f"{OPTIMIZER}a.w.exp_avg": target})
    assert torch.equal(target, MOMENTS)
