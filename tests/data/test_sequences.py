import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmstack.data.batch import IGNORE_INDEX, PADDING_DOCUMENT
from lmstack.data.sequences import TokenSequence, best_fit, collate_rows, truncate

BYTES = np.arange(100, dtype=np.int32)
X, P = IGNORE_INDEX, PADDING_DOCUMENT


def sequence(*tokens: int, trained: str = "") -> TokenSequence:
    """`trained`: a mark for each token, `x` where it is learnt."""
    return TokenSequence(list(tokens), [mark == "x" for mark in trained or "x" * len(tokens)], "file, line 3")


@given(st.integers(1, 40).flatmap(lambda capacity: st.tuples(
    st.just(capacity), st.lists(st.integers(1, capacity), max_size=60)
)))  # fmt: skip
def test_packing_loses_nothing_overfills_nothing_and_wastes_little(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    bins = best_fit(lengths, capacity)
    assert sorted(item for members in bins for item in members) == list(range(len(lengths)))
    fill = sorted(sum(lengths[item] for item in members) for members in bins)
    assert not fill or (fill[0] > 0 and fill[-1] <= capacity)
    assert len(fill) < 2 or fill[0] + fill[1] > capacity  # no two bins could have been one
    assert bins == best_fit(lengths, capacity)


def test_the_fullest_bin_with_room_is_taken() -> None:
    assert best_fit([5, 3, 6, 4, 2], 10) == [[2, 3], [0, 1, 4]]
    assert best_fit([7, 6, 3, 4], 10) == [[0, 2], [1, 3]]


def test_golden_table_of_inputs_labels_documents_and_positions() -> None:
    """The end-of-turn token 9 is inside both conversations: it ends no document. Labels are shifted once."""
    first = sequence(1, 2, 9, 3, 4, 9, 5, trained="---xxx-")
    second = sequence(1, 6, 9, 7, 9, trained="---xx")
    batch = collate_rows([[first, second], [second]], length=12, num_rows=3, byte_lengths=BYTES)
    empty = [0] * 12
    assert batch.input_ids.tolist() == [[1, 2, 9, 3, 4, 9, 1, 6, 9, 7, 0, 0], [1, 6, 9, 7] + [0] * 8, empty]
    assert batch.labels.tolist() == [
        [X, X, 3, 4, 9, X, X, X, 7, 9, X, X],
        [X, X, 7, 9] + [X] * 8,
        [X] * 12,
    ]
    assert batch.document_ids.tolist() == [[0] * 6 + [1] * 4 + [P] * 2, [0] * 4 + [P] * 8, [P] * 12]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 0, 0], [0, 1, 2, 3] + [0] * 8, empty]
    assert batch.num_bytes.tolist() == [3 + 4 + 9 + 7 + 9, 7 + 9, 0]
    assert int(batch.num_supervised) == first.num_targets + 2 * second.num_targets == 7


def test_a_label_is_the_token_that_stands_next_in_its_document() -> None:
    rows = [[sequence(1, 2, 3), sequence(4, 5)], [sequence(6, 7, 8, 9)]]
    batch = collate_rows(rows, length=None, num_rows=2, byte_lengths=BYTES)
    assert batch.input_ids.tolist() == [[1, 2, 4], [6, 7, 8]]
    assert batch.labels.tolist() == [[2, 3, 5], [7, 8, 9]]


def test_a_batch_of_no_rows_is_padding() -> None:
    batch = collate_rows([], length=None, num_rows=2, byte_lengths=BYTES)
    assert int(batch.num_supervised) == 0
    assert batch.document_ids.tolist() == [[P], [P]]


def test_what_fits_stays_as_it_is_the_last_token_being_a_label_only() -> None:
    whole = sequence(1, 2, 3, 4)
    for policy in ("error", "drop", "left", "right"):
        assert truncate(whole, 3, policy) is whole  # type: ignore[arg-type]


def test_what_is_too_long_is_refused_left_out_or_cut_at_either_end() -> None:
    long = sequence(1, 2, 3, 4, 5, trained="--x-x")
    assert truncate(long, 3, "drop") is None
    left, right = truncate(long, 3, "left"), truncate(long, 3, "right")
    assert left == sequence(2, 3, 4, 5, trained="-x-x")
    assert right == sequence(1, 2, 3, 4, trained="--x-")
    with pytest.raises(ValueError, match=r"file, line 3: 5 tokens do not fit in sequence_length=3"):
        truncate(long, 3, "error")


def test_a_cut_can_leave_nothing_to_learn_and_the_first_token_is_no_target() -> None:
    long = sequence(1, 2, 3, 4, 5, trained="x---x")
    cut = truncate(long, 2, "right")
    assert cut is not None
    assert cut.num_targets == 0
    assert long.num_targets == 1
