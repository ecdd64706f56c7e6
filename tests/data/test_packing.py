from pathlib import Path

import numpy as np
import torch

from lmstack.data.batch import IGNORE_INDEX, PADDING_DOCUMENT
from lmstack.data.packing import pack_rows
from lmstack.data.token_shards import TokenShards
from tiny_corpus import write_shards

EOT = 256
BYTE_LENGTHS = np.array([1] * 256 + [0], dtype=np.int32)
BYTE_LENGTHS[200] = 3


def test_golden_table_of_inputs_labels_documents_and_positions(tmp_path: Path) -> None:
    documents = [[EOT, 1, 2, 3], [EOT, 4], [EOT, 200, 5, 6, 7]]
    rows = TokenShards(write_shards(tmp_path, documents)).gather(np.array([1, 9]), 6)
    batch = pack_rows(rows, np.array([5, 5]), eot_id=EOT, byte_lengths=BYTE_LENGTHS, num_rows=2)
    # Every token is predicted by the one before it; the end of a document is the token that opens the next one.
    table = {
        "input_ids": [[1, 2, 3, EOT, 4], [6, 7, EOT, 1, 2]],
        "labels": [[2, 3, EOT, 4, EOT], [7, EOT, 1, 2, 3]],
        "document_ids": [[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]],
        "position_ids": [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]],
        "num_bytes": [3, 4],
    }
    assert {name: value.tolist() for name, value in vars(batch).items()} == table
    assert {value.dtype for value in vars(batch).values()} == {torch.int64}


def test_bytes_are_those_of_the_labels_not_of_the_inputs(tmp_path: Path) -> None:
    rows = TokenShards(write_shards(tmp_path, [[EOT, 200, 5, 200]])).gather(np.array([0, 1]), 3)
    batch = pack_rows(rows, np.array([2, 2]), eot_id=EOT, byte_lengths=BYTE_LENGTHS, num_rows=2)
    assert batch.num_bytes.tolist() == [3 + 1, 1 + 3]


def test_bare_documents_do_not_predict_the_next_document(tmp_path: Path) -> None:
    rows = TokenShards(write_shards(tmp_path, [[1, 2, 3], [4], [5, 6]])).gather(np.array([0]), 6)
    batch = pack_rows(rows, np.array([5]), eot_id=None, byte_lengths=BYTE_LENGTHS, num_rows=1)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5]]
    assert batch.labels.tolist() == [[2, 3, IGNORE_INDEX, IGNORE_INDEX, 6]]
    assert batch.document_ids.tolist() == [[0, 0, 0, 1, 2]]
    assert batch.num_bytes.tolist() == [3]


def test_what_is_beyond_a_rows_length_and_beyond_the_rows_is_padding(tmp_path: Path) -> None:
    rows = TokenShards(write_shards(tmp_path, [[EOT, 1, 2, 3, 4]])).gather(np.array([0, 0]), 4)
    batch = pack_rows(rows, np.array([3, 1]), eot_id=EOT, byte_lengths=BYTE_LENGTHS, num_rows=4)
    assert batch.labels.tolist() == [[1, 2, 3], [1, *[IGNORE_INDEX] * 2], *[[IGNORE_INDEX] * 3] * 2]
    assert batch.document_ids.tolist() == [[0, 0, 0], [0, *[PADDING_DOCUMENT] * 2], *[[PADDING_DOCUMENT] * 3] * 2]
    assert batch.input_ids.tolist() == [[EOT, 1, 2], [EOT, 0, 0], [0] * 3, [0] * 3]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0] * 3, [0] * 3, [0] * 3]
    assert batch.num_bytes.tolist() == [3, 1, 0, 0]


def test_a_batch_of_padding_only_can_be_made(tmp_path: Path) -> None:
    rows = TokenShards(write_shards(tmp_path, [[EOT, 1, 2, 3, 4]])).gather(np.array([], dtype=np.int64), 4)
    batch = pack_rows(rows, np.array([], dtype=np.int64), eot_id=EOT, byte_lengths=BYTE_LENGTHS, num_rows=2)
    assert batch.labels.tolist() == [[IGNORE_INDEX] * 3] * 2
