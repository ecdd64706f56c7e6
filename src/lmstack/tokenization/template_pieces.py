"""What chat templates are made of: stretches of text and special tokens, each trained or not."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Piece(NamedTuple):
    """A part of a rendered conversation that is encoded by itself.

    Attributes:
        text: The text, or the name of a special token.
        is_special: Whether it is a special token.
        is_trained: Whether its tokens are learnt.
    """

    text: str
    is_special: bool
    is_trained: bool


def special(name: str, is_trained: bool = False) -> Piece:
    """A special token.

    Args:
        name: How it is written in the vocabulary.
        is_trained: Whether it is learnt.
    """
    return Piece(name, True, is_trained)


def text(content: str, is_trained: bool = False) -> Piece:
    """Ordinary text, whatever it looks like.

    Args:
        content: The text.
        is_trained: Whether its tokens are learnt.
    """
    return Piece(content, False, is_trained)


def is_message_trained(message: Mapping[str, Any], train_on: Sequence[str]) -> bool:
    """Whether a message is learnt: what it says itself, otherwise by its role.

    Args:
        message: With `role`, and where wanted `train` (true or false) or `weight` (0 or 1).
        train_on: Roles that are learnt.

    Raises:
        ValueError: `train` or `weight` has another value.
    """
    for name in ("train", "weight"):
        value = message.get(name)
        if value is not None:
            if value not in (0, 1):
                raise ValueError(f"A message's {name}={value!r}: must be 0 or 1 (false or true).")
            return bool(value)
    return message["role"] in train_on
