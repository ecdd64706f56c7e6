import torch

from lmstack.data import batch
from lmstack.losses import reduction
from lmstack.losses.reduction import IGNORE_INDEX, count_supervised, is_supervised


def test_the_ignored_label_is_one_number_for_data_and_losses():
    assert batch.IGNORE_INDEX is reduction.IGNORE_INDEX
    assert IGNORE_INDEX == -100


def test_only_tokens_with_a_label_are_counted():
    labels = torch.tensor([[3, IGNORE_INDEX, 0], [IGNORE_INDEX, IGNORE_INDEX, 7]])
    assert count_supervised(labels).item() == 3
    assert count_supervised(labels).dtype == torch.int64
    assert is_supervised(labels).tolist() == [[True, False, True], [False, False, True]]


def test_no_tokens_are_zero_tokens():
    assert count_supervised(torch.empty(0, 5, dtype=torch.int64)).item() == 0
