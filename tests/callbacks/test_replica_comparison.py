import math

import pytest
import torch

from lmstack.callbacks.replica_comparison import Finding, checksums, compare

NAMES = ["embedding", "head"]


def findings(weights: list[list[int]], own: list[float], previous: list[float]) -> list[Finding]:
    return [Finding(f"node{rank}", *values) for rank, values in enumerate(zip(weights, own, previous, strict=True))]


def losses(own: list[float], previous: list[float]) -> list[Finding]:
    return findings([[7, 8]] * len(own), own, previous)


def weights(*sums: list[int]) -> list[Finding]:
    return findings(list(sums), [1.0] * len(sums), [1.0] * len(sums))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bit", [0, 9, 15])
def test_any_flipped_bit_changes_the_checksum_of_its_tensor_alone(dtype: torch.dtype, bit: int) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(5, 7).to(dtype), torch.randn(3).to(dtype).t()]
    before = checksums(tensors)
    integers = tensors[0].view({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize])
    integers[3, 2] ^= torch.tensor(1 << bit if bit < 15 else -(1 << 15), dtype=integers.dtype)
    after = checksums(tensors)
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_a_checksum_is_the_sum_of_the_bits() -> None:
    assert checksums([torch.tensor([1.0, 1.0]), torch.tensor([-0.0])]) == [2 * 0x3F800000, -(2**31)]


def test_who_agrees_is_left_alone() -> None:
    assert compare(losses([1.0, 2.0, 3.0], [3.0, 1.0, 2.0]), NAMES, 0.0) is None
    assert compare(losses([math.nan, 2.0], [2.0, math.nan]), NAMES, 0.0) is None
    assert compare(losses([math.inf], [math.inf]), NAMES, 0.0) is None


def test_the_one_whose_weights_differ_from_the_majority_is_named_with_the_first_parameter() -> None:
    found = compare(weights([7, 8], [7, 8], [7, 9], [7, 8]), NAMES, 0.0)
    assert found is not None
    assert found.suspects == [2]
    assert found.what == "the weights of rank 2 (node2) differ from the other ranks, first head"


def test_of_two_copies_that_differ_neither_is_trusted() -> None:
    found = compare(weights([6, 8], [7, 8]), NAMES, 0.0)
    assert found is not None
    assert found.suspects == [0, 1]
    assert found.what == "the weights of rank 0 (node0) and rank 1 (node1) differ from each other, first embedding"


def test_weights_without_a_majority_make_all_suspect() -> None:
    found = compare(weights([7, 8], [7, 8], [7, 9], [7, 9]), NAMES, 0.0)
    assert found is not None
    assert found.suspects == [0, 1, 2, 3]


def test_the_one_that_had_part_in_both_wrong_losses_is_named() -> None:
    # Rank 1 gets its own loss wrong, and that of rank 0.
    found = compare(losses([1.0, 2.5, 3.0, 4.0], [4.0, 1.5, 2.0, 3.0]), NAMES, 0.0)
    assert found is not None
    assert found.suspects == [1]
    assert found.what == ("the loss of a micro-batch is 1 on rank 0 and 1.5 on rank 1: rank 1 (node1) computed wrongly")


def test_one_wrong_loss_is_of_the_two_that_computed_it() -> None:
    found = compare(losses([1.0, 2.0, 3.0, 4.0], [4.5, 1.0, 2.0, 3.0]), NAMES, 0.0)
    assert found is not None
    assert found.suspects == [0, 3]
    found = compare(losses([1.0, 2.0], [2.0, math.nan]), NAMES, 0.0)
    assert found is not None
    assert found.suspects == [0, 1]


def test_a_process_alone_suspects_itself() -> None:
    found = compare(losses([1.0], [1.25]), NAMES, 0.0)
    assert found is not None
    assert found.suspects == [0]
    assert "is 1 on rank 0 and 1.25 the second time: rank 0 (node0)" in found.what


def test_a_relative_difference_up_to_the_tolerance_is_let_pass() -> None:
    assert compare(losses([100.0], [100.9]), NAMES, 0.01) is None
    assert compare(losses([100.0], [101.1]), NAMES, 0.01) is not None
    assert compare(weights([7, 8], [7, 9]), NAMES, 0.01) is not None  # of weights none
