"""A data window that is spoilt, with and without the spike guard, against the clean run.

    python experiments/004_spike_guard/run.py --seeds 1 2 3

Text is the source of Python's standard library, in bytes. Writes results.csv, curves.csv and
docs/images/spike_guard.svg.
"""

import argparse
import csv
import os
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from lmstack.callbacks import Checkpointing, MetricsCsv, RunRecorder, SpikeGuard
from lmstack.callbacks.metrics_csv import read_metrics
from lmstack.callbacks.spike_policies import RollbackPolicy, SkipPolicy
from lmstack.data.batch import TokenBatch
from lmstack.data.modules.pretraining import PretrainingData
from lmstack.data.pretraining_rows import TrainRows
from lmstack.data.step_loader import StepLoader
from lmstack.models import TransformerConfig
from lmstack.models.config import DenseConfig, DepthScaledInit, RotaryConfig
from lmstack.optim.optimizers import AdamWConfig
from lmstack.optim.schedules import WSDSchedule
from lmstack.prep.build import build_corpus
from lmstack.run_record import SPIKES, read_lines
from lmstack.stages import CausalLM
from lmstack.tokenization import byte_tokenizer

HERE = Path(__file__).parent
IMAGE = HERE.parents[1] / "docs" / "images" / "spike_guard.svg"
ROWS, LENGTH, MICRO = 8, 64, 8
STEPS, SPOILT_FROM, SPOILT_STEPS, EVERY = 300, 180, 24, 30

# What a spoilt row says. Noise has a high loss at once; one byte over and over has a low one, and the harm shows later.
SPOILS = {
    "one byte": lambda rng, length: np.full(length, rng.integers(0, 256)),
    "noise": lambda rng, length: rng.integers(0, 256, size=length),
}
GUARDS = {
    "no guard": lambda: None,
    "skip": lambda: SpikeGuard(SkipPolicy()),
    "rollback": lambda: SpikeGuard(RollbackPolicy(margin_steps=16)),
}


class SpoiltRows(TrainRows):
    """Rows of a window of the order say something else."""

    def __getitem__(self, position: int) -> list[TokenBatch]:
        batches = super().__getitem__(position)
        places = self.skipped.places(np.arange(position, position + ROWS))
        for i, place in enumerate(places.tolist()):
            if SPOILT_FROM * ROWS <= place < (SPOILT_FROM + SPOILT_STEPS) * ROWS:
                tokens = torch.from_numpy(self.spoil(np.random.default_rng(place), LENGTH + 1))  # type: ignore[attr-defined]
                batch = batches[i // MICRO]
                batch.input_ids[i % MICRO], batch.labels[i % MICRO] = tokens[:-1], tokens[1:]
        return batches


class SpoiltData(PretrainingData):
    """A corpus with a spoilt window, or with none."""

    spoil: Any = None

    def train_dataloader(self) -> StepLoader:
        loader = super().train_dataloader()
        if self.spoil is not None:
            loader.rows.__class__ = SpoiltRows
            loader.rows.spoil = self.spoil  # type: ignore[attr-defined]
        return loader


def corpus(folder: Path) -> Path:
    """Some of the standard library, in bytes."""
    byte_tokenizer().save(folder / "tokenizer")
    texts = folder / "texts"
    texts.mkdir()
    for file in sorted(Path(os.__file__).parent.glob("*.py"))[:120]:
        (texts / f"{file.stem}.txt").write_text(file.read_text(errors="ignore"))
    build_corpus(
        folder / "corpus", {"texts": str(texts)}, folder / "tokenizer", validation_fraction=0.05, num_workers=1
    )
    return folder / "corpus"


def train(data_path: Path, folder: Path, seed: int, spoil: Any, guard: SpikeGuard | None, steps: int) -> None:
    """One run; its metrics and decisions are in the folder."""
    torch.manual_seed(seed)
    stage = CausalLM(
        TransformerConfig(
            vocab_size=257,
            max_seq_len=LENGTH,
            dim=64,
            num_layers=2,
            num_heads=4,
            positions=RotaryConfig(),
            feed_forward=DenseConfig(hidden_dim=192),
            initialization=DepthScaledInit(),
        ),
        AdamWConfig(lr=3e-3),
        WSDSchedule(warmup=20, decay=60),
    )
    data = SpoiltData(str(data_path), LENGTH, MICRO, ROWS, seed=seed, validation_max_tokens=8_192)
    data.spoil = spoil
    callbacks: list[L.Callback] = [RunRecorder(), Checkpointing(every_n_steps=25, keep_last=4)]
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        gradient_clip_val=1.0,
        val_check_interval=EVERY,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=MetricsCsv(str(folder)),
        callbacks=callbacks + ([guard] if guard else []),
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        plugins=[_checkpoint_io()],
    )
    trainer.fit(stage, data)


def _checkpoint_io() -> Any:
    from lmstack.callbacks import FolderCheckpointIO

    return FolderCheckpointIO()


def main() -> None:
    """Run all, tabulate and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--draw", action="store_true", help="only draw what curves.csv has")
    given = parser.parse_args()
    if given.draw:
        draw()
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    curves: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        path = corpus(Path(scratch))
        arms = [("none", "no guard"), *((spoil, guard) for spoil in SPOILS for guard in GUARDS), ("none", "rollback")]
        for seed in given.seeds:
            for spoil, guard in arms:
                folder = Path(scratch) / f"{seed}-{spoil}-{guard}".replace(" ", "_")
                train(path, folder, seed, SPOILS.get(spoil), GUARDS[guard](), given.steps)
                actions = [line["action"] for line in read_lines(folder / SPIKES)]
                for row in read_metrics(folder / "metrics.csv"):
                    if row["val/loss"]:
                        numbers = {"step": int(row["step"]), "val_loss": float(row["val/loss"])}
                        counts = {"skips": actions.count("skip"), "rollbacks": actions.count("rollback")}
                        curves.append({"spoilt": spoil, "guard": guard, "seed": seed, **numbers, **counts})
                print(curves[-1], flush=True)
                write(curves)
    draw()


def write(curves: list[dict[str, Any]]) -> None:
    """results.csv (the last step of each run) and curves.csv."""
    last = max(row["step"] for row in curves)
    for name, rows in (("curves.csv", curves), ("results.csv", [row for row in curves if row["step"] == last])):
        with (HERE / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def draw() -> None:
    """The figure of curves.csv: mean and range over seeds."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "004"
    import matplotlib.pyplot as plt

    with (HERE / "curves.csv").open() as file:
        curves = list(csv.DictReader(file))
    names = {("none", "no guard"): "clean data", ("one byte", "no guard"): "spoilt, no guard"}
    names |= {("one byte", "skip"): "spoilt, skip", ("one byte", "rollback"): "spoilt, rollback"}
    figure, axes = plt.subplots(figsize=(6, 4))
    axes.axvspan(SPOILT_FROM, SPOILT_FROM + SPOILT_STEPS, color="0.9", label="spoilt data")
    for (spoil, guard), name in names.items():
        points: dict[int, list[float]] = {}
        for row in curves:
            if (row["spoilt"], row["guard"]) == (spoil, guard) and int(row["step"]) >= 120:
                points.setdefault(int(row["step"]), []).append(float(row["val_loss"]))
        steps = sorted(points)
        style = "--" if name == "clean data" else "-"
        (line,) = axes.plot(steps, [statistics.mean(points[step]) for step in steps], style, label=name)
        low, high = ([choose(points[step]) for step in steps] for choose in (min, max))
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.12)
    axes.set(xlabel="optimizer step", ylabel="validation loss, nats per byte")
    axes.legend()
    figure.savefig(IMAGE, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    main()
