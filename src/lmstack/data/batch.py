"""Every batch type, with its shapes."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lmstack.losses.reduction import IGNORE_INDEX as IGNORE_INDEX  # the label of a token that does not count

PADDING_DOCUMENT = -1
"""The document id of padding: its tokens see only each other, and none of them has a label."""


@dataclass
class TokenBatch:
    """Packed rows of text for language modelling: one micro-batch of one rank.

    Attributes:
        input_ids: Tokens fed to the model.
        labels: The token that `logits[:, t]` should predict, `IGNORE_INDEX` where it does not count. Shifted already.
        document_ids: Which document of its row a token belongs to, counted from 0; `PADDING_DOCUMENT` on padding.
        position_ids: Where a token stands in its document within the row, counted from 0.
        num_bytes: UTF-8 bytes that the counted labels of a row stand for; special tokens stand for none.
    """

    input_ids: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    document_ids: Int[Tensor, "B T"]
    position_ids: Int[Tensor, "B T"]
    num_bytes: Int[Tensor, " B"]

    def to(self, device: torch.device | str, **options: Any) -> "TokenBatch":
        """The batch on `device`.

        Args:
            device: Where to.
            **options: Passed on to `Tensor.to`, such as `non_blocking`.
        """
        return TokenBatch(**{name: value.to(device, **options) for name, value in vars(self).items()})

    def pin_memory(self) -> "TokenBatch":
        """The batch in page-locked memory, for asynchronous copies to a GPU."""
        return TokenBatch(**{name: value.pin_memory() for name, value in vars(self).items()})
