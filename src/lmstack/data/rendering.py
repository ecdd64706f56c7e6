"""Batches as a person reads them: text, documents, positions, and which tokens the loss counts."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from rich.text import Text

from lmstack.data.batch import IGNORE_INDEX, PADDING_DOCUMENT, PreferenceBatch, TokenBatch
from lmstack.tokenization.tokenizer import Tokenizer

LEGEND = "⟦supervised⟧ tokens are predicted and counted in the loss; others are context only."
_DOCUMENT_STYLES = ("cyan", "yellow", "green", "magenta", "blue", "red")


@dataclass(frozen=True)
class RowCounts:
    """What a row of a batch holds.

    Attributes:
        num_tokens: Tokens that are not padding.
        num_supervised: Labels that count.
        num_documents: Documents, or parts of them.
        num_bytes: UTF-8 bytes that the counted labels stand for.
        num_gaps: Tokens without a label that are followed by a token of their own document: what a loss mask makes.
    """

    num_tokens: int
    num_supervised: int
    num_documents: int
    num_bytes: int
    num_gaps: int


def count_rows(batch: TokenBatch | PreferenceBatch) -> list[RowCounts]:
    """Counts of every row.

    Args:
        batch: Packed rows, or answers, whose bytes are not known and counted as 0.
    """
    num_bytes = batch.num_bytes.tolist() if isinstance(batch, TokenBatch) else [0] * len(batch.input_ids)
    is_real = batch.document_ids != PADDING_DOCUMENT
    is_supervised = batch.labels != IGNORE_INDEX
    goes_on = is_real[:, :-1] & (batch.document_ids[:, :-1] == batch.document_ids[:, 1:])
    gaps = (goes_on & ~is_supervised[:, :-1]).sum(1)
    return [
        RowCounts(
            num_tokens=int(is_real[row].sum()),
            num_supervised=int(is_supervised[row].sum()),
            num_documents=len(set(batch.document_ids[row][is_real[row]].tolist())),
            num_bytes=num_bytes[row],
            num_gaps=int(gaps[row]),
        )
        for row in range(len(batch.input_ids))
    ]


def render_row(
    batch: TokenBatch | PreferenceBatch, row: int, tokenizer: Tokenizer, *, max_tokens: int | None = None
) -> Text:
    """A row's text: a line for each document with its id and positions, then its tokens.

    A token is supervised when the label before it is that token. What the last label asks for stands at the end, for
    it is no input of this row. Colours say which document, brackets what is supervised, so that a file or a pipe loses
    nothing.

    Args:
        batch: Packed rows, or answers.
        row: Which of them.
        tokenizer: Turns ids into text.
        max_tokens: Stop after this many tokens; None shows all.
    """
    shown = batch.input_ids.shape[1] if max_tokens is None else min(max_tokens, batch.input_ids.shape[1])
    ids, labels = batch.input_ids[row].tolist(), batch.labels[row].tolist()
    documents, positions = batch.document_ids[row].tolist(), batch.position_ids[row].tolist()
    supervised = [False, *(labels[t] == ids[t + 1] for t in range(len(ids) - 1))]
    text = Text()
    for number, (start, end) in enumerate(_stretches(documents, positions)):
        if start >= shown:
            break
        style = _DOCUMENT_STYLES[number % len(_DOCUMENT_STYLES)]
        if documents[start] == PADDING_DOCUMENT:
            text.append(f"── padding · {end - start} tokens\n", "dim")
            continue
        text.append(
            f"── document {documents[start]} · positions {positions[start]}–{positions[end - 1]} · "
            f"{sum(supervised[start:end])} of {end - start} tokens supervised\n",
            f"bold {style}",
        )
        for is_target, group in groupby(range(start, min(end, shown)), key=supervised.__getitem__):
            piece = visible(tokenizer.decode([ids[t] for t in group]))
            text.append(f"⟦{piece}⟧" if is_target else piece, style if is_target else f"dim {style}")
        text.append("\n")
    if shown < len(ids):
        text.append(f"… {len(ids) - shown} more tokens\n", "dim")
    elif labels[-1] != IGNORE_INDEX:
        text.append("── the last label\n", "dim")
        text.append(f"⟦{visible(tokenizer.decode([labels[-1]]))}⟧\n")
    return text


def visible(text: str) -> str:
    """Text that is safe to print: control characters, which could drive the terminal, become escapes.

    Args:
        text: Any text; newlines and tabs stay.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def _stretches(documents: list[int], positions: list[int]) -> Iterator[tuple[int, int]]:
    """Maximal runs of one document with consecutive positions."""
    start = 0
    for t in range(1, len(documents) + 1):
        goes_on = t < len(documents) and documents[t] == documents[t - 1]
        if not goes_on or (positions[t] != positions[t - 1] + 1 and documents[t] != PADDING_DOCUMENT):
            yield start, t
            start = t
