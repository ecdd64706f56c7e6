"""Rows of tokens to batches: the one place where labels are shifted."""

import numpy as np
import torch
from jaxtyping import Int32, Int64

from lmstack.data.batch import IGNORE_INDEX, PADDING_DOCUMENT, TokenBatch
from lmstack.data.token_shards import TokenRows


def pack_rows(
    rows: TokenRows,
    lengths: Int64[np.ndarray, " N"],
    *,
    eot_id: int | None,
    byte_lengths: Int32[np.ndarray, " V"],
    num_rows: int,
    context: Int64[np.ndarray, " N"] | None = None,
) -> TokenBatch:
    """A micro-batch from rows of one token more than they feed: each token's label is the token after it.

    Where documents are stored bare, without a token that opens them, the last token of a document has no label: what
    follows is another text.

    Args:
        rows: Tokens with one lookahead token each.
        lengths: Tokens of each row that count; the rest of the row is padding.
        eot_id: The token that opens each document; None when documents are stored bare.
        byte_lengths: Bytes that each token stands for.
        num_rows: Rows of the batch; those beyond the given ones are padding.
        context: Tokens at the start of each row whose labels do not count; None for none.
    """
    tokens, document_ids, position_ids = rows
    length = tokens.shape[1] - 1
    labels = tokens[:, 1:].copy()
    if eot_id is None:
        labels[document_ids[:, 1:] != document_ids[:, :-1]] = IGNORE_INDEX
    inputs, documents, positions = tokens[:, :-1], document_ids[:, :-1], position_ids[:, :-1]
    if lengths.min(initial=length) < length:
        beyond = np.arange(length) >= lengths[:, None]
        labels[beyond] = IGNORE_INDEX
        inputs, positions = np.where(beyond, 0, inputs), np.where(beyond, 0, positions)
        documents = np.where(beyond, PADDING_DOCUMENT, documents)
    if context is not None:
        labels[np.arange(length) < context[:, None]] = IGNORE_INDEX
    counted = labels != IGNORE_INDEX
    num_bytes = np.where(counted, byte_lengths[np.where(counted, labels, 0)], 0).sum(axis=1, dtype=np.int64)
    missing = num_rows - len(tokens)
    return TokenBatch(
        input_ids=_padded(inputs, missing, 0),
        labels=_padded(labels, missing, IGNORE_INDEX),
        document_ids=_padded(documents, missing, PADDING_DOCUMENT),
        position_ids=_padded(positions, missing, 0),
        num_bytes=_padded(num_bytes, missing, 0),
    )


def _padded(values: np.ndarray, missing: int, value: int) -> torch.Tensor:
    if missing:
        values = np.concatenate([values, np.full((missing, *values.shape[1:]), value, dtype=values.dtype)])
    return torch.from_numpy(np.ascontiguousarray(values))
