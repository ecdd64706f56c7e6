"""The cache as a table of slots."""

from types import SimpleNamespace

import torch

from lmstack.nn.kv_cache import KVCache

SHAPE = SimpleNamespace(num_layers=2, kv_heads=3, channels=4)


def test_keys_and_values_go_to_their_positions_of_their_row_and_layer() -> None:
    cache = KVCache(SHAPE, 2, 6)
    keys, values = torch.randn(2, 2, 3, 4), torch.randn(2, 2, 3, 4)
    cache.extent = 5
    all_keys, all_values = cache.update(1, keys, values, torch.tensor([[0, 1], [3, 4]]))
    assert all_keys.shape == all_values.shape == (2, 3, 5, 4)
    assert torch.equal(all_keys[0, :, 1], keys[0, 1])
    assert torch.equal(all_keys[1, :, 3], keys[1, 0])
    assert torch.equal(all_values[1, :, 4], values[1, 1])
    assert not all_keys[1, :, :3].any()
    assert not cache.keys[0].any()


def test_selecting_rows_keeps_them_in_the_order_asked_for() -> None:
    cache = KVCache(SHAPE, 3, 6, dtype=torch.float64)
    for row in range(3):
        cache.keys[0][row] = row
    cache.select(torch.tensor([2, 0]))
    assert cache.batch_size == 2
    assert cache.keys[0].dtype == torch.float64
    assert cache.keys[0][:, 0, 0, 0].tolist() == [2.0, 0.0]
