"""A tiny pretraining run in memory, for tests of stages and callbacks."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lmstack.callbacks import FolderCheckpointIO
from lmstack.data.batch import IGNORE_INDEX, PADDING_DOCUMENT, TokenBatch
from lmstack.models import TransformerConfig
from lmstack.models.config import DenseConfig, DepthScaledInit, RotaryConfig
from lmstack.optim.optimizers import AdamWConfig
from lmstack.optim.schedules import CosineSchedule
from lmstack.stages import CausalLM

VOCAB = 29


def tiny_config(**changes: Any) -> TransformerConfig:
    shape = {
        "vocab_size": VOCAB,
        "max_seq_len": 16,
        "dim": 16,
        "num_layers": 2,
        "num_heads": 2,
        "positions": RotaryConfig(),
        "feed_forward": DenseConfig(hidden_dim=32),
        "initialization": DepthScaledInit(std=0.1),
    }
    return TransformerConfig(**(shape | changes))


def tiny_stage(seed: int = 0, *, config: TransformerConfig | None = None, **arguments: Any) -> CausalLM:
    torch.manual_seed(seed)
    defaults = {"optimizer": AdamWConfig(lr=1e-2), "schedule": CosineSchedule(warmup=2)}
    return CausalLM(config or tiny_config(), **(defaults | arguments))


def batch_of(rows: list[list[int]], length: int | None = None) -> TokenBatch:
    """Each row is one document of `len(row) - 1` inputs, padded on the right to the longest or to `length`."""
    width = length or max(len(row) - 1 for row in rows)
    shape = (len(rows), width)
    input_ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORE_INDEX)
    document_ids = torch.full(shape, PADDING_DOCUMENT)
    position_ids = torch.arange(width).repeat(len(rows), 1)
    for i, row in enumerate(rows):
        n = len(row) - 1
        input_ids[i, :n], labels[i, :n] = torch.tensor(row[:-1]), torch.tensor(row[1:])
        document_ids[i, :n] = 0
    return TokenBatch(input_ids, labels, document_ids, position_ids, (labels != IGNORE_INDEX).sum(1))


def random_rows(count: int, lengths: Callable[[int], int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCAB, (lengths(i) + 1,), generator=generator).tolist() for i in range(count)]


class _Loader:
    def __init__(self, steps: list[list[TokenBatch]]) -> None:
        self.steps, self.position = steps, 0

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[TokenBatch]]:
        while self.position < len(self.steps):
            self.position += 1
            yield self.steps[self.position - 1]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class _Batches:
    def __init__(self, batches: list[TokenBatch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[TokenBatch]:
        return iter(self.batches)


class StepData(L.LightningDataModule):
    """Hands out given optimizer steps, and given validation batches."""

    def __init__(self, steps: list[list[TokenBatch]], validation: list[TokenBatch] | None = None) -> None:
        super().__init__()
        self.steps, self.validation = steps, validation or []

    def train_dataloader(self) -> _Loader:
        return _Loader(self.steps)

    def val_dataloader(self) -> _Batches:
        return _Batches(self.validation)

    def tokens_at_step(self, step: int) -> int:
        return sum(batch.input_ids.numel() for micro_batches in self.steps[:step] for batch in micro_batches)

    def steps_for_tokens(self, tokens: int) -> int:
        return next(step for step in range(len(self.steps) + 1) if self.tokens_at_step(step) >= tokens)


def tiny_trainer(folder: Path, callbacks: list[L.Callback] | None = None, **arguments: Any) -> L.Trainer:
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": bool(callbacks) and any("Checkpointing" in type(c).__name__ for c in callbacks),
        "max_epochs": 1,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "default_root_dir": folder,
        "plugins": [FolderCheckpointIO()],
    }
    return L.Trainer(callbacks=callbacks, **(defaults | arguments))


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)):
            assert_equal(x, y, f"{where}[{i}]")
    elif not callable(a):
        assert a == b, where
