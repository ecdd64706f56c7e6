"""What the data modules of fine-tuning share: a list of items, gone through in epochs."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from lmstack.data.chat_data import load_tokenizer
from lmstack.data.item_loader import EpochPlan, HeldOut, ItemSteps, Share
from lmstack.data.rank import Rank
from lmstack.data.step_loader import StepLoader, ValidationLoader
from lmstack.tokenization import ChatTemplate, Tokenizer

_SHOWN_REASONS = 8


class ItemData(LightningDataModule, ABC):
    """Items in memory, in an order that depends only on the seed, whatever the number of ranks.

    Args:
        tokenizer: A tokenizer.json, its folder, or the folder of a run whose tokenizer is taken.
        chat_template: `chatml`, `llama3`, `plain`, or a file with a Jinja template; None takes the tokenizer's own.
        add_special_tokens: Give the tokenizer the special tokens that the template needs.
        global_batch_size: Items of an optimizer step, over all ranks.
        micro_batch_size: Items of a forward pass on one device.
        num_epochs: Passes over the items; None goes on until the trainer stops.
        seed: Another seed is another order.
    """

    batch_size_name: ClassVar[str] = "global_batch_size"

    def __init__(
        self,
        tokenizer: str,
        chat_template: str | None,
        *,
        add_special_tokens: bool,
        global_batch_size: int,
        micro_batch_size: int,
        num_epochs: float | None,
        seed: int,
    ) -> None:
        super().__init__()
        if micro_batch_size < 1 or global_batch_size < 1:
            raise ValueError(
                f"data.micro_batch_size={micro_batch_size}, data.{self.batch_size_name}={global_batch_size}: "
                "must be 1 or more."
            )
        self.tokenizer_path = tokenizer
        self.template_name = chat_template
        self.add_special_tokens = add_special_tokens
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.validation_batch_size: int | None = micro_batch_size
        self.num_epochs = num_epochs
        self.seed = seed
        self.counts: Counter[str] = Counter()
        self._loaded: tuple[Tokenizer, ChatTemplate] | None = None
        self._plan: EpochPlan | None = None

    # ---- what differs -----------------------------------------------------------------------------------------------

    @abstractmethod
    def _load(self) -> None:
        """Read the files; afterwards the items are there."""

    @abstractmethod
    def _item_tokens(self) -> Sequence[int]:
        """Tokens of each training item."""

    @abstractmethod
    def _num_held_out(self) -> int:
        """Validation items."""

    @abstractmethod
    def _step(self, share: Share) -> Any:
        """What this rank does in an optimizer step: micro-batches, as many on every rank."""

    @abstractmethod
    def _held_out_batch(self, items: Sequence[int]) -> Any:
        """A validation batch."""

    @abstractmethod
    def _item_origins(self, item: int) -> list[str]:
        """Files and lines that a training item comes from."""

    @abstractmethod
    def _fingerprint(self) -> str:
        """Of the training items, so that a position in other data is refused."""

    # ---- what is shared ---------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Read and tokenize, once.

        Args:
            stage: Not looked at.
        """
        del stage
        if self._loaded is None:
            self._loaded = load_tokenizer(
                self.tokenizer_path, self.template_name, add_special_tokens=self.add_special_tokens
            )
            self._load()
            reasons = self.counts.most_common()
            for reason, count in reasons[:_SHOWN_REASONS]:
                self.tell(f"{count:,} rows left out: {reason}")
            if rest := sum(count for _, count in reasons[_SHOWN_REASONS:]):
                self.tell(f"{rest:,} rows left out for other reasons")

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, with the template's special tokens; known after `setup`."""
        return self._known()[0]

    @property
    def chat_template(self) -> ChatTemplate:
        """How messages become tokens; known after `setup`."""
        return self._known()[1]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return self.chat_template.end_ids(self.tokenizer)

    @property
    def plan(self) -> EpochPlan:
        """The order of items and the size of steps; known after `setup`."""
        self._known()
        if self._plan is None:
            self._plan = EpochPlan(np.array(self._item_tokens()), self.global_batch_size, self.num_epochs, self.seed)
        return self._plan

    def check_vocab(self, vocab_size: int) -> None:
        """Refuse a model that has no row for some token.

        Args:
            vocab_size: Of the model.
        """
        if vocab_size < self.tokenizer.vocab_size:
            raise ValueError(
                f"The model's vocab_size={vocab_size} is smaller than the {self.tokenizer.vocab_size} tokens of "
                f"data.tokenizer={self.tokenizer_path}."
            )

    def train_dataloader(self) -> StepLoader:
        """Optimizer steps of this rank."""
        rank = Rank.of(self.trainer)
        unit = self.micro_batch_size * rank.world_size
        if self.global_batch_size % unit:
            raise ValueError(
                f"data.{self.batch_size_name}={self.global_batch_size} is not a multiple of "
                f"micro_batch_size={self.micro_batch_size} x {rank.world_size} ranks. Use "
                f"{max(1, round(self.global_batch_size / unit)) * unit}, or change another of them."
            )
        identity = {"data": self._fingerprint(), "seed": self.seed, self.batch_size_name: self.global_batch_size}
        return StepLoader(ItemSteps(self.plan, rank, self._step), identity)

    def val_dataloader(self) -> ValidationLoader:
        """Validation batches of this rank; none when nothing is held out."""
        rank = Rank.of(self.trainer)
        size = self.validation_batch_size or max(1, self.global_batch_size // rank.world_size)
        return ValidationLoader(HeldOut(self._num_held_out(), size, rank, self._held_out_batch))

    def describe_rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Where items come from: number, file and line.

        Args:
            start: Place of the first in the order of items.
            stop: The place after the last.
        """
        items = [self.plan.item_in_order(place) for place in range(start, stop)]
        return [
            {"row": start + number, "item": item, "documents": self._item_origins(item)}
            for number, item in enumerate(items)
        ]

    def samples_at_step(self, step: int) -> int:
        """Items consumed, over all ranks, when so many optimizer steps are done.

        Args:
            step: Optimizer steps.
        """
        return self.plan.samples_at_step(step)

    def tokens_at_step(self, step: int) -> int:
        """Tokens consumed, over all ranks, when so many optimizer steps are done.

        Args:
            step: Optimizer steps.
        """
        return self.plan.tokens_at_step(step)

    def steps_for_tokens(self, tokens: int) -> int:
        """Optimizer steps after which at least so many tokens are consumed.

        Args:
            tokens: Tokens, over all ranks.
        """
        return self.plan.steps_for_tokens(tokens)

    def tell(self, line: str) -> None:
        """Print a line, once over all ranks.

        Args:
            line: What there is to say.
        """
        if rank_zero_only.rank in (None, 0):
            Console(highlight=False).print(line, markup=False, soft_wrap=True)

    def _known(self) -> tuple[Tokenizer, ChatTemplate]:
        if self._loaded is None:
            raise ValueError("The data is not read yet: call setup() first.")
        return self._loaded
