"""Stages that predict tokens: validation as sums over sums, in nats, perplexity and bits per byte, also by source."""

from abc import ABC

import numpy as np
import torch
from torch import Tensor

from lmstack.data.batch import TokenBatch
from lmstack.data.pretraining_rows import ValidationRows
from lmstack.stages.supervised import SupervisedModule


class TokenObjective(SupervisedModule, ABC):
    """A stage whose `loss_sums` are over labels and report a `loss` in nats."""

    _validation_sums: Tensor | None = None
    _rows_by_source: ValidationRows | None = None

    def on_validation_epoch_start(self) -> None:
        """Start the sums anew."""
        trainer = self.trainer
        loader = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
        rows = getattr(loader, "rows", None)
        self._rows_by_source = rows if isinstance(rows, ValidationRows) else None
        num_sources = len(self._rows_by_source.shards) if self._rows_by_source else 1
        self._validation_sums = torch.zeros(num_sources, 3, dtype=torch.float64, device=self._sums_device())

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Add a batch to the sums of its source.

        Args:
            batch: One batch of this rank.
            batch_idx: Its number.
        """
        assert self._validation_sums is not None
        loss = self.loss_sums(batch).reported["loss"]
        row = torch.stack([loss.double(), batch.num_supervised.double(), batch.num_bytes.sum().double()])
        source = self._rows_by_source.source_of(batch_idx) if self._rows_by_source else 0
        self._validation_sums[source] += row.to(self._validation_sums.device)

    def on_validation_epoch_end(self) -> None:
        """Report sums over sums: nats per token, perplexity, bits per byte; the last by source too."""
        assert self._validation_sums is not None
        sums = self._sum_over_ranks(self._validation_sums)
        loss_sum, num_tokens, num_bytes = sums.sum(0)
        loss = loss_sum / num_tokens
        values = {"val/loss": loss, "val/perplexity": loss.exp()}
        if num_bytes > 0:
            values["val/bits_per_byte"] = loss_sum / num_bytes / np.log(2)
        names = self._rows_by_source.names if self._rows_by_source else ()
        for name, (loss_sum, _, num_bytes) in zip(names, sums, strict=False):
            if len(names) > 1 and num_bytes > 0:
                values[f"val/bits_per_byte/{name}"] = loss_sum / num_bytes / np.log(2)
        if self.trainer.state.fn == "fit":
            values["step"] = torch.tensor(self.trainer.global_step)
        self.log_dict({name: value.float() for name, value in values.items()})

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """As validation.

        Args:
            batch: One batch of this rank.
            batch_idx: Ignored.
        """
        self.validation_step(batch, batch_idx)

    def on_test_epoch_start(self) -> None:
        """As validation."""
        self.on_validation_epoch_start()

    def on_test_epoch_end(self) -> None:
        """As validation."""
        self.on_validation_epoch_end()
