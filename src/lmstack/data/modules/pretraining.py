"""Packed rows of a tokenized corpus, for pretraining."""

from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule

from lmstack.data.batch_size import BatchSizePlan, BatchSizeWarmup
from lmstack.data.corpus import Corpus
from lmstack.data.manifest import Manifest, Split
from lmstack.data.mixture import Mixture
from lmstack.data.mixture_plan import MixturePhase, MixturePlan, first_row, plan_mixture
from lmstack.data.pretraining_rows import TrainRows, ValidationRows, order_identity
from lmstack.data.rank import Rank
from lmstack.data.step_loader import StepLoader, ValidationLoader
from lmstack.data.token_shards import TokenShards
from lmstack.tokenization.tokenizer import Tokenizer


class PretrainingData(LightningDataModule):
    """Packed rows of a corpus in an order that depends only on the seed, whatever the number of ranks and workers.

    Args:
        path: Folder of the corpus, or its URL (s3://, gs://).
        sequence_length: Tokens of a row.
        micro_batch_size: Rows of a forward pass on one device.
        global_batch_size: Rows of an optimizer step, over all ranks.
        weights: Share of the rows by source, in any unit, 0 for none; null takes every row once an epoch.
        temperature: Sources by size^(1/temperature), times their weights: 1 is by size, larger is more even, and with
            1 weights are relative numbers of epochs. Null leaves the size out of it.
        max_epochs: How often a source may be gone through, for all sources or by name; what it then gives less, the
            others give more. Null is no cap.
        phases: Other weights and temperatures from some point of the run on.
        seed: Another seed is another order.
        max_tokens: Tokens of the run; null goes on until the trainer stops.
        batch_size_warmup: Smaller steps at the start; null for none.
        validation_batch_size: Rows of a validation batch; null is micro_batch_size.
        validation_max_tokens: At most so many validation tokens, spread evenly; null takes all of them.
        validation_stride: Tokens that a validation row scores, its last; the tokens before them are context. Smaller
            gives every token more context and takes longer; null scores whole rows, side by side.
        num_workers: Processes that prepare batches ahead; 0 is fast enough for tokens on a local disk.
    """

    def __init__(
        self,
        path: str,
        sequence_length: int,
        micro_batch_size: int,
        global_batch_size: int,
        *,
        weights: dict[str, float] | None = None,
        temperature: float | None = None,
        max_epochs: float | dict[str, float] | None = None,
        phases: list[MixturePhase] | None = None,
        seed: int = 0,
        max_tokens: int | None = None,
        batch_size_warmup: BatchSizeWarmup | None = None,
        validation_batch_size: int | None = None,
        validation_max_tokens: int | None = None,
        validation_stride: int | None = None,
        num_workers: int = 0,
    ):
        super().__init__()
        self.path = path
        self.sequence_length = sequence_length
        self.micro_batch_size = micro_batch_size
        self.global_batch_size = global_batch_size
        self.weights = weights
        self.temperature = temperature
        self.max_epochs = max_epochs
        self.phases = phases or []
        self.seed = seed
        self.max_tokens = max_tokens
        self.validation_batch_size = validation_batch_size
        self.validation_max_tokens = validation_max_tokens
        self.validation_stride = validation_stride
        self.num_workers = num_workers
        self.plan = BatchSizePlan(global_batch_size, sequence_length, max_tokens, batch_size_warmup)
        self._corpus: Corpus | None = None
        self._added: list[MixturePhase] = []
        self._train_loader: StepLoader | None = None

    def setup(self, stage: str | None = None) -> None:
        """Open the corpus and check that it is finished and fits its tokenizer.

        Args:
            stage: Not looked at: every stage reads the same corpus.
        """
        del stage
        if self._corpus is None:
            self._corpus = Corpus(self.path)

    @property
    def corpus(self) -> Corpus:
        """The corpus; opened by `setup`."""
        if self._corpus is None:
            raise ValueError("The corpus is not open yet: call setup() first.")
        return self._corpus

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the corpus; known after `setup`."""
        return self.corpus.tokenizer

    @property
    def manifest(self) -> Manifest:
        """What the corpus holds; known after `setup`."""
        return self.corpus.manifest

    def check_vocab(self, vocab_size: int) -> None:
        """Refuse a model that has no row for some token.

        Args:
            vocab_size: Of the model.
        """
        needed = self.manifest.tokenizer.vocab_size
        if vocab_size < needed:
            raise ValueError(
                f"The model's vocab_size={vocab_size} is smaller than the {needed} tokens of the corpus {self.path}. "
                f"Set model.transformer.vocab_size={needed} or more."
            )

    @property
    def mixture_plan(self) -> MixturePlan:
        """What the run takes from which source; known after `setup`."""
        return plan_mixture(
            {name: self.manifest.sources[name].train.tokens for name in self._names("train")},
            self.plan,
            self.seed,
            weights=self.weights,
            temperature=self.temperature,
            max_epochs=self.max_epochs,
            phases=sorted(
                [*self.phases, *self._added], key=lambda phase: first_row(phase.start, self.plan, "data.phases.")
            ),
        )

    def add_phase(self, place: int, weights: dict[str, float]) -> None:
        """Mix sources by other weights from some place of the order on, until a phase that is planned begins.

        A checkpoint brings it back.

        Args:
            place: Of the first row that comes in the new order.
            weights: Of every source; 0 leaves one out.

        Raises:
            ValueError: The run has no weights that could be changed, or these are wrong.
        """
        if self.weights is None and self.temperature is None:
            raise ValueError(
                "data.weights is null: every row comes once an epoch, in an order that has no weights to change. Start "
                "with data.temperature=1 for shares by size."
            )
        if self.max_epochs is not None:
            raise ValueError("data.max_epochs is set: its caps hold for the mixture that was planned.")
        before = self._added
        start = f"{place * self.sequence_length} tokens"
        self._added = [*(phase for phase in before if phase.start != start), MixturePhase(start, dict(weights))]
        try:
            self._refresh()
        except ValueError:
            self._added = before
            raise

    def state_dict(self) -> dict[str, Any]:
        """Phases that were not planned."""
        return {"added_phases": [{"start": phase.start, "weights": phase.weights} for phase in self._added]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back.

        Args:
            state_dict: What `state_dict` gave.
        """
        self._added = [MixturePhase(**phase) for phase in state_dict["added_phases"]]
        self._refresh()

    def _refresh(self) -> None:
        if self._corpus is None:
            return
        rows, identity = self._rows()
        if self._train_loader is not None:
            self._train_loader.take_order(rows, identity)

    def train_dataloader(self) -> StepLoader:
        """Optimizer steps of this rank."""
        self._check_divisible(Rank.of(self.trainer).world_size)
        self._train_loader = StepLoader(*self._rows(), self.num_workers)
        return self._train_loader

    def val_dataloader(self) -> ValidationLoader:
        """Validation batches of this rank."""
        return self._held_out(self.validation_max_tokens)

    def test_dataloader(self) -> ValidationLoader:
        """The whole validation side, also where training looks at a part of it."""
        return self._held_out(None)

    def describe_rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Where rows come from: source, epoch, first token in the source's stream, first and last document.

        Args:
            start: Place of the first in the order of rows.
            stop: The place after the last.
        """
        names, shards, mixture = self._order()
        rows = mixture.rows(np.arange(start, stop))
        return [
            {
                "row": start + number,
                "source": names[source],
                "epoch": epoch,
                "token": token,
                "documents": [
                    shards[source].document_at(token),
                    shards[source].document_at(token + self.sequence_length - 1),
                ],
            }
            for number, (source, epoch, token) in enumerate(
                zip(rows.source.tolist(), rows.epoch.tolist(), rows.start.tolist(), strict=True)
            )
        ]

    def samples_at_step(self, step: int) -> int:
        """Rows consumed, over all ranks, when so many optimizer steps are done.

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

    def _rows(self) -> tuple[TrainRows, dict[str, Any]]:
        _, shards, mixture = self._order()
        rank = Rank.of(self.trainer)
        rows = TrainRows(shards, mixture, self.plan, self.tokenizer, self.micro_batch_size, rank)
        return rows, order_identity(self.manifest.fingerprint, mixture, self.plan)

    def _order(self) -> tuple[list[str], list[TokenShards], Mixture]:
        names = self._names("train")
        shards = [self.corpus.shards("train", name) for name in names]
        return names, shards, self.mixture_plan.mixture

    def _held_out(self, max_tokens: int | None) -> ValidationLoader:
        names = self._names("validation")
        if not names:
            raise ValueError(
                f"The corpus {self.path} has no validation side. Build it with validation_fraction above 0 or with "
                "validation_sources, or set trainer.limit_val_batches=0."
            )
        shards = [self.corpus.shards("validation", name) for name in names]
        batch_size = self.validation_batch_size or self.micro_batch_size
        rows = ValidationRows(
            shards,
            self.tokenizer,
            self.sequence_length,
            batch_size,
            Rank.of(self.trainer),
            max_tokens,
            self.validation_stride,
            names,
        )
        return ValidationLoader(rows, self.num_workers)

    def _names(self, split: Split) -> list[str]:
        return [name for name, source in self.manifest.sources.items() if getattr(source, split).tokens]

    def _check_divisible(self, world_size: int) -> None:
        unit = self.micro_batch_size * world_size
        warmup = self.plan.warmup
        sizes = {"global_batch_size": self.global_batch_size}
        if warmup is not None:
            sizes["batch_size_warmup.start"] = warmup.start
        for name, size in sizes.items():
            if size % unit:
                raise ValueError(
                    f"data.{name}={size} is not a multiple of micro_batch_size={self.micro_batch_size} x "
                    f"{world_size} ranks. Use {max(1, round(size / unit)) * unit}, or change data.micro_batch_size."
                )
