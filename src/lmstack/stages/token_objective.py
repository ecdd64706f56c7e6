"""Stages that predict tokens: validation as sums over sums, in nats, perplexity and bits per byte."""

from abc import ABC

import numpy as np
import torch
from torch import Tensor

from lmstack.data.batch import TokenBatch
from lmstack.stages.supervised import SupervisedModule


class TokenObjective(SupervisedModule, ABC):
    """A stage whose `loss_sums` are over labels and report a `loss` in nats."""

    _validation_sums: Tensor | None = None

    def on_validation_epoch_start(self) -> None:
        """Start the sums anew."""
        self._validation_sums = torch.zeros(3, dtype=torch.float64, device=self._sums_device())

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Add a batch to the sums.

        Args:
            batch: One batch of this rank.
            batch_idx: Ignored.
        """
        assert self._validation_sums is not None
        loss = self.loss_sums(batch).reported["loss"]
        row = torch.stack([loss.double(), batch.num_supervised.double(), batch.num_bytes.sum().double()])
        self._validation_sums += row.to(self._validation_sums.device)

    def on_validation_epoch_end(self) -> None:
        """Report sums over sums: nats per token, perplexity, bits per byte."""
        assert self._validation_sums is not None
        loss_sum, num_tokens, num_bytes = self._sum_over_ranks(self._validation_sums)
        loss = loss_sum / num_tokens
        values = {"val/loss": loss, "val/perplexity": loss.exp()}
        if num_bytes > 0:
            values["val/bits_per_byte"] = loss_sum / num_bytes / np.log(2)
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
