"""What data of conversations, comparisons and prompts share: tokenizer, template, bad rows, the split by prompt."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from lmstack.data.records import Record
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


def usable(
    records: Iterable[Record], read: Callable[[Record], T], on_bad_row: OnBadRow, counts: Counter[str]
) -> list[T]:
    """What the records say, those left out that say nothing usable.

    Args:
        records: All of them.
        read: Understands one, or raises.
        on_bad_row: Whether to raise too, or to count.
        counts: Of rows left out, by reason; added to.

    Raises:
        ValueError: A row is bad and `on_bad_row` is `error`.
    """
    results = []
    for record in records:
        try:
            results.append(read(record))
        except ValueError as error:
            if on_bad_row == "error":
                raise ValueError(f"{error} Mend the row, or set data.on_bad_row=drop.") from error
            counts[str(error).removeprefix(record.where).lstrip(": ")] += 1
    if not results:
        raise ValueError(f"None of the {sum(counts.values())} rows can be used: {counts.most_common(1)[0][0]}")
    return results


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
