"""Rendered rows, against literal text."""

import torch

from lmstack.data.batch import IGNORE_INDEX, PADDING_DOCUMENT, TokenBatch
from lmstack.data.rendering import count_rows, render_row, visible
from lmstack.tokenization import byte_tokenizer

TOKENIZER = byte_tokenizer()
EOT = TOKENIZER.eot_id


def packed(labels: list[int] | None = None) -> TokenBatch:
    """Two documents and the beginning of a third: "aé", "b", "c"; then two tokens of padding."""
    ids = [EOT, *TOKENIZER.encode("aé"), EOT, *TOKENIZER.encode("b"), EOT, 0, 0]
    last = TOKENIZER.encode("c")
    return TokenBatch(
        input_ids=torch.tensor([ids]),
        labels=torch.tensor([labels or [*ids[1:7], *last, IGNORE_INDEX, IGNORE_INDEX]]),
        document_ids=torch.tensor([[0, 0, 0, 0, 1, 1, 2, PADDING_DOCUMENT, PADDING_DOCUMENT]]),
        position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 0, 0, 0]]),
        num_bytes=torch.tensor([5]),
    )


def test_documents_positions_padding_and_supervised_tokens_are_marked_in_plain_text() -> None:
    assert render_row(packed(), 0, TOKENIZER).plain == (
        "── document 0 · positions 0–3 · 3 of 4 tokens supervised\n"
        "<|endoftext|>⟦aé⟧\n"
        "── document 1 · positions 0–1 · 2 of 2 tokens supervised\n"
        "⟦<|endoftext|>b⟧\n"
        "── document 2 · positions 0–0 · 1 of 1 tokens supervised\n"
        "⟦<|endoftext|>⟧\n"
        "── padding · 2 tokens\n"
    )


def test_a_loss_mask_is_visible_and_counted() -> None:
    ids = packed().input_ids[0].tolist()
    labels = [
        IGNORE_INDEX,
        *ids[2:4],
        IGNORE_INDEX,
        IGNORE_INDEX,
        IGNORE_INDEX,
        IGNORE_INDEX,
        IGNORE_INDEX,
        IGNORE_INDEX,
    ]
    batch = packed(labels)
    first = render_row(batch, 0, TOKENIZER).plain.split("──")[1]
    assert first == " document 0 · positions 0–3 · 2 of 4 tokens supervised\n<|endoftext|>a⟦é⟧\n"
    (counts,) = count_rows(batch)
    assert (counts.num_tokens, counts.num_supervised, counts.num_documents, counts.num_bytes) == (7, 2, 3, 5)
    assert counts.num_gaps == 2  # before "a", before "b"; what ends a document, and padding, is no gap


def test_the_ends_of_bare_documents_and_padding_are_no_gaps() -> None:
    ids = packed().input_ids[0].tolist()
    labels = [*ids[1:4], IGNORE_INDEX, ids[5], IGNORE_INDEX, ids[0], IGNORE_INDEX, IGNORE_INDEX]
    assert count_rows(packed(labels))[0].num_gaps == 0


def test_the_last_label_stands_apart_since_it_is_no_input() -> None:
    ids = TOKENIZER.encode("ab")
    row = torch.tensor([ids])
    batch = TokenBatch(row, torch.tensor([[ids[1], 99]]), row * 0, torch.tensor([[0, 1]]), torch.tensor([2]))
    assert render_row(batch, 0, TOKENIZER).plain.endswith("a⟦b⟧\n── the last label\n⟦c⟧\n")


def test_a_position_that_starts_again_within_a_document_starts_a_stretch() -> None:
    row = torch.tensor([TOKENIZER.encode("abcd")])
    batch = TokenBatch(row, row, row * 0, torch.tensor([[0, 1, 0, 1]]), torch.tensor([4]))
    assert render_row(batch, 0, TOKENIZER).plain.count("── document 0 · positions 0–1") == 2


def test_a_long_row_is_cut_and_says_so() -> None:
    text = render_row(packed(), 0, TOKENIZER, max_tokens=2).plain
    assert "⟦a⟧" in text
    assert text.endswith("… 7 more tokens\n")
    assert "document 1" not in text


def test_control_characters_cannot_reach_the_terminal() -> None:
    assert visible("a\x1b[31m\r\nb\té\x07😀") == "a\\x1b[31m\\r\nb\té\\x07😀"
