"""Who sees whom, pair by pair against a loop."""

import itertools

import pytest
import torch

from lmstack.nn.masks import AttentionPattern, PatternShape, build_cached_pattern, build_pattern
from lmstack.nn.positions import alibi_slopes

CPU = torch.device("cpu")
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, -1], [3, 4, 4, 4, 4, 4, 5, 5]])


def build(shape: PatternShape, document_ids: torch.Tensor | None) -> AttentionPattern:
    return build_pattern(shape, batch_size=2, seq_len=8, device=CPU, document_ids=document_ids, kernel="sdpa")


@pytest.mark.parametrize(
    ("causal", "window", "packed"), list(itertools.product([True, False], [None, 1, 3, 8], [True, False]))
)
def test_the_mask_allows_exactly_what_a_loop_allows(causal: bool, window: int | None, packed: bool) -> None:
    pattern = build(PatternShape(causal, window=window), DOCUMENTS if packed else None)
    expected = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    for b, q, k in itertools.product(range(2), range(8), range(8)):
        sees = k <= q or not causal
        sees = sees and (window is None or abs(q - k) < window)
        expected[b, 0, q, k] = sees and (not packed or bool(DOCUMENTS[b, q] == DOCUMENTS[b, k]))
    if pattern.allowed is None:
        assert not packed
        assert window in (None, 8)
        assert pattern.is_causal == causal
    else:
        assert torch.equal(pattern.allowed.expand(2, 1, 8, 8), expected)


def test_alibi_adds_its_penalty_where_a_query_sees_and_minus_infinity_elsewhere() -> None:
    slopes = alibi_slopes(3)
    pattern = build(PatternShape(True, window=3, slopes=slopes), DOCUMENTS)
    assert pattern.bias is not None
    for b, h, q, k in itertools.product(range(2), range(3), range(8), range(8)):
        sees = 0 <= q - k < 3 and DOCUMENTS[b, q] == DOCUMENTS[b, k]
        expected = -float(slopes[h]) * (q - k) if sees else float("-inf")
        assert float(pattern.bias[b, h, q, k]) == expected


def test_without_documents_window_alibi_or_softcap_there_is_no_mask() -> None:
    assert build(PatternShape(True), None) == AttentionPattern(is_causal=True)
    assert build(PatternShape(False), None) == AttentionPattern(is_causal=False)
    assert build(PatternShape(True, softcap=3.0), None).allowed is not None


def test_a_cached_query_sees_slots_up_to_its_own_position_within_the_window() -> None:
    position_ids = torch.tensor([[2, 3], [5, 6]])
    pattern = build_cached_pattern(PatternShape(True, window=4), position_ids=position_ids, extent=7)
    assert pattern.allowed is not None
    for b, t, slot in itertools.product(range(2), range(2), range(7)):
        assert bool(pattern.allowed[b, 0, t, slot]) == (0 <= int(position_ids[b, t]) - slot < 4)


@pytest.mark.parametrize("window", [None, 5])
def test_the_block_mask_of_flex_attention_is_the_same_mask(window: int | None) -> None:
    shape = PatternShape(True, window=window)
    dense = build(shape, DOCUMENTS)
    flex = build_pattern(shape, batch_size=2, seq_len=8, device=CPU, document_ids=DOCUMENTS, kernel="flex")
    assert flex.block_mask is not None
    assert dense.allowed is not None
    index = torch.arange(8)
    sees = flex.block_mask.mask_mod(torch.arange(2)[:, None, None], index, index[:, None], index)
    assert torch.equal(sees, dense.allowed[:, 0])
