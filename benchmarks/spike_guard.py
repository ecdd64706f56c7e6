"""What the spike guard adds to a step of training: processor time with it over without it, in one run.

    python benchmarks/spike_guard.py --rounds 5 --out benchmarks/results/spike_guard.json
    python benchmarks/spike_guard.py --preset 20m --steps 6

Processor seconds of the process and not seconds of the clock, so that what else the machine does matters less. Both
runs take their rounds in turn; the ratio is that of the medians over all steps after the first few of each round.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lmstack.callbacks import SpikeGuard
from lmstack.callbacks.spike_policies import SkipPolicy
from lmstack.data.batch import TokenBatch
from lmstack.models import TransformerConfig
from lmstack.models.config import DenseConfig, DepthScaledInit, RotaryConfig
from lmstack.optim.optimizers import AdamWConfig
from lmstack.optim.schedules import ConstantSchedule
from lmstack.stages import CausalLM

PRESETS = {
    "tiny": {"dim": 64, "num_layers": 2, "num_heads": 4, "hidden": 192, "rows": 8, "length": 128},
    "small": {"dim": 192, "num_layers": 6, "num_heads": 6, "hidden": 512, "rows": 8, "length": 256},
    "20m": {"dim": 384, "num_layers": 8, "num_heads": 6, "hidden": 1024, "rows": 16, "length": 512},
}
VOCAB, WARM_UP = 4096, 3


class Steps(L.LightningDataModule):
    """The same random micro-batch at every step."""

    def __init__(self, rows: int, length: int, steps: int) -> None:
        super().__init__()
        ids = torch.randint(VOCAB, (rows, length + 1))
        positions = torch.arange(length).repeat(rows, 1)
        counts = torch.full((rows,), length)
        self.batch = TokenBatch(ids[:, :-1], ids[:, 1:], torch.zeros_like(positions), positions, counts)
        self.steps = steps

    def train_dataloader(self) -> Any:
        """Itself."""
        return self

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[TokenBatch]]:
        yield from ([self.batch] for _ in range(self.steps))


class Clock(L.Callback):
    """Processor seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Note the time since the last step."""
        now = time.process_time()
        if trainer.global_step > WARM_UP:
            self.seconds.append(now - self._last)
        self._last = now


def measure(preset: dict[str, int], steps: int, callbacks: list[L.Callback], folder: str) -> list[float]:
    """One round."""
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=VOCAB,
        max_seq_len=preset["length"],
        dim=preset["dim"],
        num_layers=preset["num_layers"],
        num_heads=preset["num_heads"],
        positions=RotaryConfig(),
        feed_forward=DenseConfig(hidden_dim=preset["hidden"]),
        initialization=DepthScaledInit(),
    )
    stage = CausalLM(config, AdamWConfig(lr=1e-4), ConstantSchedule())
    clock = Clock()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        gradient_clip_val=1.0,
        logger=False,
        callbacks=[*callbacks, clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        log_every_n_steps=10,
    )
    trainer.fit(stage, Steps(preset["rows"], preset["length"], steps))
    return clock.seconds


def main() -> None:
    """Measure in turn, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(given.threads)
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(given.rounds):
            seconds["without"] += measure(PRESETS[given.preset], given.steps, [], folder)
            seconds["with"] += measure(PRESETS[given.preset], given.steps, [SpikeGuard(SkipPolicy())], folder)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "preset": given.preset,
        **PRESETS[given.preset],
        "steps": len(seconds["with"]),
        "milliseconds": {name: round(1e3 * value, 2) for name, value in medians.items()},
        "ratio": round(medians["with"] / medians["without"], 4),
    }
    print(json.dumps(result, indent=1))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
