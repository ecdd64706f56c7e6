"""A stage with every shape of argument and almost no work: what the command line is tested with."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import torch

from lmstack.models.config import TransformerConfig


@dataclass(frozen=True)
class Fast:
    """A fast optimizer.

    Attributes:
        lr: Learning rate.
        momentum: Share kept of the last update.
    """

    lr: float
    momentum: float = 0.0
    kind: Literal["fast"] = "fast"


@dataclass(frozen=True)
class Slow:
    """A slow optimizer.

    Attributes:
        lr: Learning rate.
        patience: Steps waited.
    """

    lr: float
    patience: int = 3
    kind: Literal["slow"] = "slow"


class StubModel(L.LightningModule):
    """One parameter that falls towards zero.

    Args:
        transformer: Shape of nothing.
        optimizer: How it falls.
        coefs: Words and numbers.
        size: Counts nothing.
        fail_with: Message of an error in the first step.
    """

    def __init__(
        self,
        transformer: TransformerConfig,
        optimizer: Fast | Slow,
        *,
        coefs: dict[str, float] | None = None,
        size: int | None = None,
        fail_with: str | None = None,
    ) -> None:
        super().__init__()
        self.transformer, self.optimizer, self.coefs, self.size, self.fail_with = (
            transformer,
            optimizer,
            coefs,
            size,
            fail_with,
        )
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.fail_with == "disk":
            raise OSError(28, os.strerror(28), "runs/x/checkpoints/model.safetensors")
        if self.fail_with == "interrupt":
            raise KeyboardInterrupt
        if self.fail_with:
            raise RuntimeError(self.fail_with)
        loss = (self.weight**2).sum()
        self.log("train/loss", loss, batch_size=1)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", (self.weight**2).sum(), batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.optimizer.lr)


class Items(torch.utils.data.IterableDataset[int]):
    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.length))

    def __len__(self) -> int:
        return self.length


class StubData(L.LightningDataModule):
    """Numbers.

    Args:
        path: Where nothing is.
        sequence_length: Tokens in a row.
        micro_batch_size: Rows in a forward.
        global_batch_size: Rows in a step.
        max_tokens: Length of the run.
        weights: Of sources.
    """

    def __init__(
        self,
        path: str,
        sequence_length: int,
        micro_batch_size: int,
        global_batch_size: int,
        *,
        max_tokens: int | None = None,
        weights: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        self.per_step = sequence_length * global_batch_size

    def train_dataloader(self) -> Any:
        length = 10**9 if self.max_tokens is None else -(-self.max_tokens // self.per_step)
        return torch.utils.data.DataLoader(Items(length), batch_size=None)

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(Items(2), batch_size=None)
