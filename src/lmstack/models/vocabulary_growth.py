"""Rows for new tokens: each starts as the mean of the pieces that its text was cut into before."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lmstack.models.checkpoint import State
from lmstack.models.config import TransformerConfig

_VOCABULARY_ROWS = ("embedding.weight", "head.weight", "head_bias")


def grow_vocabulary(
    state: State,
    config: TransformerConfig,
    pieces: Mapping[int, Sequence[int]],
    *,
    num_tokens: int,
    multiple_of: int = 1,
    noise: float = 0.0,
    seed: int = 0,
) -> tuple[State, TransformerConfig]:
    """State and config of the model with a row for every new token, in embedding, head and head bias.

    Old rows stay, so the logits of old tokens are what they were. A new token's logit is the mean of its pieces'.
    Tokens without pieces, and rows that no token has, start as the mean of all old rows.

    Args:
        state: Of the old model; not changed.
        config: Of the old model.
        pieces: Old tokens of each new one, by its id.
        num_tokens: Tokens of the new tokenizer.
        multiple_of: Pad the number of rows to a multiple of this.
        noise: Standard deviation of noise on new rows of embedding and head, in those of the old rows; it tells tokens
            of the same pieces apart.
        seed: Of the noise.

    Raises:
        ValueError: A number is out of range, or a piece is no old token.
    """
    if multiple_of < 1 or not noise >= 0:
        raise ValueError(f"multiple_of={multiple_of}, noise={noise}: must be at least 1, and not negative.")
    num_old = min(pieces, default=num_tokens)
    if any(max(parts, default=0) >= num_old for parts in pieces.values()) or num_old > config.vocab_size:
        raise ValueError(f"New tokens from {num_old} on do not follow the {config.vocab_size} rows of the model.")
    num_rows = -(-max(num_tokens, config.vocab_size) // multiple_of) * multiple_of
    generator = torch.Generator().manual_seed(seed)
    grown = {
        name: _grow(tensor, pieces, num_old, num_rows, 0.0 if name == "head_bias" else noise, generator)
        if name in _VOCABULARY_ROWS
        else tensor
        for name, tensor in state.items()
    }
    return grown, replace(config, vocab_size=num_rows)


def _grow(
    rows: Tensor,
    pieces: Mapping[int, Sequence[int]],
    num_old: int,
    num_rows: int,
    noise: float,
    generator: torch.Generator,
) -> Tensor:
    old = rows[:num_old].float()
    new = old.mean(dim=0).expand(num_rows - num_old, *old.shape[1:]).clone()
    for index, parts in pieces.items():
        if parts:
            new[index - num_old] = old[list(parts)].mean(dim=0)
    if noise:
        new += noise * old.std(dim=0) * torch.randn(new.shape, generator=generator)
    return torch.cat([rows[:num_old], new.to(rows.dtype)])
