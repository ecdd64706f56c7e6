"""What data of conversations, comparisons and prompts share: tokenizer, template, bad rows, the split by prompt."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from lmstack.data.records import Record, read_records
from lmstack.models.checkpoint import weights_folder
from lmstack.tokenization import END_OF_TEXT, ChatTemplate, Tokenizer

OnBadRow = Literal["error", "drop"]
"""Whether a row that cannot be used stops the run, or is left out and counted."""

T = TypeVar("T")


def load_tokenizer(path: str, chat_template: str | None, *, add_special_tokens: bool) -> tuple[Tokenizer, ChatTemplate]:
    """A tokenizer and a template that fits it; the tokenizer carries the template into checkpoints.

    Args:
        path: A tokenizer.json, its folder, or the folder of a run, whose tokenizer is taken.
        chat_template: As for `ChatTemplate.find`.
        add_special_tokens: Give the tokenizer the special tokens that the template writes, where it lacks them.

    Raises:
        ValueError: There is no tokenizer or template, or they do not fit.
    """
    folder = Path(path)
    if not folder.exists():
        raise ValueError(f"data.tokenizer={path}: there is no such file or folder. Name a tokenizer.json, or a run.")
    if folder.is_dir() and not (folder / "tokenizer.json").is_file():
        folder = weights_folder(folder) / "tokenizer"
    tokenizer = Tokenizer.load(folder)
    template = ChatTemplate.find(chat_template, tokenizer)
    missing = [name for name in template.special_tokens() if tokenizer.token_id(name) is None]
    if missing and add_special_tokens:
        tokenizer = tokenizer.with_special_tokens(missing)
    if template.kind == "plain" and tokenizer.eot_id is None and add_special_tokens:
        tokenizer = tokenizer.with_special_tokens([END_OF_TEXT], END_OF_TEXT)
    template.check(tokenizer)
    return tokenizer.with_chat_template(template.to_dict()), template


def read_rows(
    paths: str | Sequence[str], read: Callable[[Record], T], on_bad_row: OnBadRow, counts: Counter[str]
) -> list[T]:
    """What the rows of files say, those left out that say nothing usable.

    Args:
        paths: Files, folders or globs.
        read: Understands a row, or raises.
        on_bad_row: Whether to raise too, or to count.
        counts: Of rows left out, by reason; added to.

    Raises:
        ValueError: A row is bad and `on_bad_row` is `error`, or all are bad.
    """
    own: Counter[str] = Counter()
    results = []
    for record in read_records(paths, own if on_bad_row == "drop" else None):
        try:
            results.append(read(record))
        except ValueError as error:
            leave_out(error, record.where, on_bad_row, own)
    if not results:
        raise ValueError(f"{paths}: none of the {own.total()} rows can be used, such as: {own.most_common(1)[0][0]}")
    counts.update(own)
    return results


def leave_out(error: ValueError, where: str, on_bad_row: OnBadRow, counts: Counter[str]) -> None:
    """Raise over a bad row, or count it.

    Args:
        error: What is wrong with it.
        where: Its file and line.
        on_bad_row: Which of the two.
        counts: Of rows left out, by reason; added to.

    Raises:
        ValueError: `on_bad_row` is `error`.
    """
    reason = str(error).removeprefix(where).lstrip(": ")
    if on_bad_row == "error":
        raise ValueError(f"{where}: {reason} Mend the row, or set data.on_bad_row=drop.") from error
    counts[reason] += 1


def split_by_prompt(
    items: Sequence[T], prompt_of: Callable[[T], str], validation_fraction: float
) -> tuple[list[T], list[T]]:
    """Training and validation side: all items of a prompt are on one, by the hash of its text.

    Args:
        items: All of them.
        prompt_of: Text that identifies an item's prompt.
        validation_fraction: Share of the prompts that is held out.
    """
    if not 0.0 <= validation_fraction < 1.0:
        raise ValueError(f"data.validation_fraction={validation_fraction}: must be from 0 to below 1.")
    held_out = [_place(prompt_of(item)) < validation_fraction for item in items]
    return (
        [item for item, is_held_out in zip(items, held_out, strict=True) if not is_held_out],
        [item for item, is_held_out in zip(items, held_out, strict=True) if is_held_out],
    )


def refuse_overlap(train: Iterable[str], validation: Iterable[str]) -> None:
    """Refuse prompts that are on both sides.

    Args:
        train: Prompts of the training files.
        validation: Prompts of the validation files.

    Raises:
        ValueError: A prompt is in both.
    """
    shared = {prompt.strip() for prompt in train} & {prompt.strip() for prompt in validation}
    if shared:
        raise ValueError(
            f"{len(shared)} prompts are in data.path and in data.validation_path, such as {min(shared)[:80]!r}. "
            "What is validated on must not be trained on: take them out of one side."
        )


def _place(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.strip().encode()).digest()[:8]) / 2**64
