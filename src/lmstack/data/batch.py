"""Every batch type, with its shapes."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
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

    @property
    def num_supervised(self) -> Int[Tensor, ""]:
        """How many labels count."""
        return (self.labels != IGNORE_INDEX).sum()

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


@dataclass
class PreferenceBatch:
    """Answers to a few prompts, each answer once, and which of them is better than which: one micro-batch of one rank.

    A row is a prompt and one answer to it, padded on the right. All answers to a prompt are in the same batch.

    Attributes:
        input_ids: Tokens fed to the model.
        labels: The token that `logits[:, t]` should predict where that is a token of the answer, its end included;
            `IGNORE_INDEX` elsewhere. Shifted already.
        lengths: Tokens of each row that are not padding; 0 for a row that is there only for its shape.
        better: The better row of each pair.
        worse: The worse row of each pair.
        pair_weight: One divided by the number of pairs of its prompt.
        margin: By how much the better answer of each pair is better, in the data's own unit; 0 where it does not say.
        is_tie: Whether the answers of a pair are ranked alike: then `better` is neither.
        group: Which prompt of the batch a row answers, counted from 0.
        desirability: 1 for a wanted answer, -1 for an unwanted one, 0 where that is not known.
        demonstration: Whether a row is a reference demonstration.
    """

    input_ids: Int[Tensor, "N T"]
    labels: Int[Tensor, "N T"]
    lengths: Int[Tensor, " N"]
    better: Int[Tensor, " M"]
    worse: Int[Tensor, " M"]
    pair_weight: Float[Tensor, " M"]
    margin: Float[Tensor, " M"]
    is_tie: Bool[Tensor, " M"]
    group: Int[Tensor, " N"]
    desirability: Float[Tensor, " N"]
    demonstration: Bool[Tensor, " N"]

    @property
    def num_supervised(self) -> Int[Tensor, ""]:
        """Prompts with a pair; in a batch without pairs, rows that are wanted or unwanted."""
        if len(self.better):
            return torch.zeros_like(self.group).index_fill(0, self.group[self.better], 1).sum()
        return (self.desirability != 0).sum()

    @property
    def position_ids(self) -> Int[Tensor, "N T"]:
        """Where a token stands in its row, counted from 0."""
        return torch.arange(self.input_ids.shape[1], device=self.input_ids.device).expand_as(self.input_ids)

    @property
    def document_ids(self) -> Int[Tensor, "N T"]:
        """0 on real tokens, `PADDING_DOCUMENT` on padding."""
        return torch.where(self.position_ids < self.lengths[:, None], 0, PADDING_DOCUMENT)

    @property
    def last(self) -> Int[Tensor, " N"]:
        """Position of each row's last token; 0 in a row without tokens."""
        return (self.lengths - 1).clamp(min=0)

    @property
    def response_lengths(self) -> Int[Tensor, " N"]:
        """Tokens of each answer, its end included."""
        return (self.labels != IGNORE_INDEX).sum(1)

    def to(self, device: torch.device | str, **options: Any) -> "PreferenceBatch":
        """The batch on `device`.

        Args:
            device: Where to.
            **options: Passed on to `Tensor.to`, such as `non_blocking`.
        """
        return PreferenceBatch(**{name: value.to(device, **options) for name, value in vars(self).items()})

    def pin_memory(self) -> "PreferenceBatch":
        """The batch in page-locked memory, for asynchronous copies to a GPU."""
        return PreferenceBatch(**{name: value.pin_memory() for name, value in vars(self).items()})


@dataclass
class PromptBatch:
    """Prompts to answer: one rank's share of one rollout.

    Attributes:
        prompts: Rendered token ids of each prompt, the opening of the assistant's turn included; not padded.
        rows: The source record of each prompt, for rewards that look things up in it.
        ids: Number of each prompt among all that the run consumes, counted from 0 over all ranks.
    """

    prompts: list[list[int]]
    rows: list[dict[str, Any]]
    ids: Int[Tensor, " B"]

    def to(self, device: torch.device | str, **options: Any) -> "PromptBatch":
        """The batch with its tensors on `device`; the prompts stay lists.

        Args:
            device: Where to.
            **options: Passed on to `Tensor.to`, such as `non_blocking`.
        """
        return PromptBatch(self.prompts, self.rows, self.ids.to(device, **options))

    def pin_memory(self) -> "PromptBatch":
        """The batch with its tensors in page-locked memory."""
        return PromptBatch(self.prompts, self.rows, self.ids.pin_memory())
