"""How much memory two processes take to build a model that is cut over them, with and without deferring its weights.

Variables as of `torchrun` say which process this is. Prints JSON: bytes of the model, and the largest growth each way.
"""

import json
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import lightning as L
import torch
import torch.distributed as dist

from lmstack.models import TransformerConfig
from lmstack.models.config import DenseConfig, DepthScaledInit, RotaryConfig
from lmstack.models.transformer import deferred_weights
from lmstack.parallel.mesh_strategy import MeshStrategy
from tiny_run import StepData, batch_of, random_rows, tiny_stage, tiny_trainer

BATCH = batch_of(random_rows(2, lambda _: 4))


def shape(**changes: int) -> TransformerConfig:
    sizes = {"vocab_size": 8192, "max_seq_len": 16, "dim": 1024, "num_layers": 4, "num_heads": 8} | changes
    return TransformerConfig(
        **sizes,
        positions=RotaryConfig(),
        feed_forward=DenseConfig(hidden_dim=2 * sizes["dim"]),
        initialization=DepthScaledInit(std=0.02),
    )


def status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


class Largest(L.Callback):
    """The largest size of this process so far, before the first forward."""

    size = 0

    def on_validation_start(self, *_: Any) -> None:
        self.size = status("VmHWM")


def growth(folder: Path, config: TransformerConfig, *, is_deferred: bool) -> int:
    """Bytes by which this process grows at most while the model is built and cut."""
    largest = Largest()
    trainer = tiny_trainer(folder, [largest], devices=2, strategy=MeshStrategy(shards="auto"))
    Path("/proc/self/clear_refs").write_text("5")  # forget the largest size so far
    before = status("VmRSS")
    with deferred_weights() if is_deferred else nullcontext():
        stage = tiny_stage(config=config)
    trainer.validate(stage, StepData([], [BATCH]), verbose=False)
    return largest.size - before


def main() -> None:
    torch.set_num_threads(1)
    folder, large = Path(sys.argv[1]), shape()
    growth(folder, shape(dim=64, vocab_size=64), is_deferred=True)  # imports
    report: dict[str, Any] = {
        name: growth(folder, large, is_deferred=name == "deferred") for name in ("deferred", "whole")
    }
    with torch.device("meta"):
        report["model"] = sum(4 * p.numel() for p in tiny_stage(config=large).parameters())
    if dist.get_rank() == 0:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
