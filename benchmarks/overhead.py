"""What watching a run costs: callbacks and spike guard as shares of a step, and how long a save blocks training.

    python benchmarks/overhead.py --out benchmarks/results/overhead
    python benchmarks/overhead.py --size tiny --steps 20 --rounds 2

Three measurements in one run, of a transformer that trains in Lightning's trainer as `lmstack fit` would train it:

- `share`: the processor time of this thread inside each callback's hooks, over that of whole steps. Every hook that the
  class overrides is timed, at every step, and the sum is divided by the number of steps: so what is done once in 50
  steps counts a fiftieth.
- `with / without`: rounds with all callbacks and rounds with none in turn; the ratio of the median steps. It includes
  what is not in hooks (the guard's judgement, loggers), and the noise of the machine.
- `save`: seconds for which `trainer.save_checkpoint` holds up training, written at once and in the background. Seconds
  of the clock, as waiting for the disk is what background writing is to avoid.
"""

import argparse
import functools
import json
import os
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lmstack.callbacks import (
    Checkpointing,
    Control,
    FolderCheckpointIO,
    LearningRateLogger,
    MetricsCsv,
    PostMortem,
    Preemption,
    RunRecorder,
    SpikeGuard,
    Throughput,
    TrainingDynamics,
)
from lmstack.callbacks.spike_policies import SkipPolicy
from lmstack.data.batch import TokenBatch
from lmstack.models import TransformerConfig
from lmstack.models.config import DenseConfig, DepthScaledInit, RotaryConfig
from lmstack.optim.optimizers import AdamWConfig
from lmstack.optim.schedules import ConstantSchedule
from lmstack.stages import CausalLM

SIZES = {
    "tiny": {"dim": 64, "num_layers": 2, "num_heads": 4, "hidden": 192, "vocab": 1024, "rows": 8, "length": 128},
    "20m": {"dim": 384, "num_layers": 8, "num_heads": 6, "hidden": 1024, "vocab": 16384, "rows": 8, "length": 256},
}
WARM_UP = 4


class Steps(L.LightningDataModule):
    """The same random micro-batch at every step.

    Args:
        size: One of `SIZES`.
        steps: Items of the loader.
    """

    def __init__(self, size: dict[str, int], steps: int) -> None:
        super().__init__()
        rows, length = size["rows"], size["length"]
        ids = torch.randint(size["vocab"], (rows, length + 1))
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
    """Processor seconds of this thread for each step after the first few."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Note the time since the last step.

        Args:
            trainer: The trainer.
            *_: Ignored.
        """
        now = time.thread_time()
        if trainer.global_step > WARM_UP:
            self.seconds.append(now - self._last)
        self._last = now


def watchers() -> list[L.Callback]:
    """The callbacks of `conf/callbacks/default.yaml` that act at steps, but for those that write samples or the bar."""
    return [
        RunRecorder(),
        Preemption(),
        PostMortem(),
        Control(),
        Checkpointing(every_n_steps=1_000_000),
        SpikeGuard(SkipPolicy()),
        Throughput(),
        LearningRateLogger(),
        TrainingDynamics(every_n_steps=50),
    ]


def time_hooks(callback: L.Callback, spent: dict[str, float]) -> None:
    """Add the time inside a callback's step hooks to `spent`, under its class' name.

    Args:
        callback: Whose hooks are replaced by timed ones.
        spent: Seconds by name, added to.
    """
    name = type(callback).__name__

    def timed(hook: Any) -> Any:
        @functools.wraps(hook)
        def call(trainer: L.Trainer, *arguments: Any) -> None:
            start = time.thread_time()
            hook(trainer, *arguments)
            if trainer.global_step >= WARM_UP:
                spent[name] += time.thread_time() - start

        return call

    for hook in ("on_train_batch_start", "on_before_optimizer_step", "on_before_zero_grad", "on_train_batch_end"):
        if getattr(type(callback), hook) is not getattr(L.Callback, hook):
            setattr(callback, hook, timed(getattr(callback, hook)))


def build(size: dict[str, int]) -> CausalLM:
    """The stage.

    Args:
        size: One of `SIZES`.
    """
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=size["vocab"],
        max_seq_len=size["length"],
        dim=size["dim"],
        num_layers=size["num_layers"],
        num_heads=size["num_heads"],
        positions=RotaryConfig(),
        feed_forward=DenseConfig(hidden_dim=size["hidden"]),
        initialization=DepthScaledInit(),
    )
    return CausalLM(config, AdamWConfig(lr=1e-4), ConstantSchedule())


def train(size: dict[str, int], steps: int, callbacks: list[L.Callback], folder: str) -> tuple[L.Trainer, list[float]]:
    """One round.

    Args:
        size: One of `SIZES`.
        steps: Optimizer steps.
        callbacks: Beside the clock.
        folder: Of the run.

    Returns:
        The trainer, and the seconds of each step.
    """
    clock = Clock()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        gradient_clip_val=1.0,
        logger=MetricsCsv(folder) if callbacks else False,
        callbacks=[*callbacks, clock],
        plugins=[FolderCheckpointIO()],
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        log_every_n_steps=10,
    )
    trainer.fit(build(size), Steps(size, steps))
    return trainer, clock.seconds


def blocking_seconds(trainer: L.Trainer, folder: Path, rounds: int) -> dict[str, list[float]]:
    """How long saving holds up training, written at once and in the background, in turn.

    Args:
        trainer: One that has trained.
        folder: Where checkpoints go.
        rounds: Saves of each kind, after a first one that is not counted.
    """
    writer: Any = trainer.strategy.checkpoint_io
    seconds: dict[str, list[float]] = {"at once": [], "in the background": []}
    for number in range(rounds + 1):
        for kind, found in seconds.items():
            writer.asynchronous = kind == "in the background"
            os.sync()  # what the last save left to the disk is not charged to the next
            start = time.perf_counter()
            trainer.save_checkpoint(folder / f"{kind}-{number}")
            if number:
                found.append(time.perf_counter() - start)
            writer.wait()
    return seconds


def main() -> None:
    """Measure in turn, print the tables, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="20m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50 + WARM_UP)
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="Path without a suffix: .json and .md are written.")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(given.threads)
    size = SIZES[given.size]
    spent: dict[str, float] = defaultdict(float)
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.rounds):
            seconds["without"] += train(size, given.steps, [], folder)[1]
            callbacks = watchers()
            for callback in callbacks:
                time_hooks(callback, spent)
            trainer, found = train(size, given.steps, callbacks, f"{folder}/{number}")
            seconds["with"] += found
        saves = blocking_seconds(trainer, Path(folder, "saves"), given.saves)
    report(given, spent, seconds, saves)


def report(
    given: argparse.Namespace,
    spent: dict[str, float],
    seconds: dict[str, list[float]],
    saves: dict[str, list[float]],
) -> None:
    """Print and write what was measured.

    Args:
        given: The command line.
        spent: Seconds inside each callback's hooks, of all steps.
        seconds: Of each step, with and without callbacks.
        saves: Seconds for which each save held up training.
    """
    step, count = statistics.median(seconds["with"]), len(seconds["with"])
    shares = {name: value / count / step for name, value in sorted(spent.items(), key=lambda item: -item[1])}
    medians = {kind: statistics.median(values) for kind, values in saves.items()}
    result = {
        "size": given.size,
        **SIZES[given.size],
        "steps": count,
        "threads": given.threads,
        "step_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "with_over_without": step / statistics.median(seconds["without"]),
        "share_of_a_step": shares | {"all": sum(shares.values())},
        "blocking_seconds": saves,
        "background_over_at_once": medians["in the background"] / medians["at once"],
    }
    lines = ["| callback | share of a step |", "| --- | --- |"]
    lines += [f"| {name} | {share:.3%} |" for name, share in [*shares.items(), ("all", sum(shares.values()))]]
    text = (
        f"`python benchmarks/overhead.py --size {given.size} --steps {given.steps} --rounds {given.rounds}`, "
        f"{count} steps of {1e3 * step:.0f} ms of processor time in {given.threads} thread(s).\n\n"
        + "\n".join(lines)
        + f"\n\nMedian step with all of them / with none: {result['with_over_without']:.4f}.\n\n"
        f"A save holds up training for {medians['at once']:.3f} s when written at once, and for "
        f"{medians['in the background']:.3f} s in the background: {result['background_over_at_once']:.1%} of it "
        f"(medians of {given.saves}).\n"
    )
    print(text)
    if given.out:
        given.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        given.out.with_suffix(".md").write_text(f"# What watching a run costs\n\n{text}")


if __name__ == "__main__":
    main()
