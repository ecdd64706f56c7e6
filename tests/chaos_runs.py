"""The tiny runs that `chaos.py` kills, and what it means that two of them ended alike."""

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lmstack.callbacks.metrics_csv import read_metrics
from lmstack.data.batch import PromptBatch
from lmstack.models.checkpoint_folder import newest_valid_checkpoint
from tiny_chats import chats, rows_file
from tiny_corpus import tiny_corpus

CONF = Path(__file__).parents[1] / "conf"
ORDER = "order.txt"
TIMES = ("time/", "throughput/", "mfu/")
SHARED = [
    "trainer=debug",
    "trainer.val_check_interval=4",
    "callbacks=minimal",
    "~callbacks.progress",
    "callbacks.checkpointing.every_n_steps=1",
    "callbacks.checkpointing.keep_last=3",
    "callbacks.order.class_path=chaos_runs.SampleOrder",
    "callbacks.order.path=${trainer.default_root_dir}/" + ORDER,
    "callbacks.average.class_path=lmstack.callbacks.WeightAverage",
    "logger=csv",
]
PRETRAIN = [
    "data.path=corpus",
    "data.sequence_length=16",
    "data.micro_batch_size=2",
    "data.global_batch_size=4",
    "model=byte_tiny",
    "model.transformer.dim=16",
    "model.transformer.num_layers=1",
    "model.transformer.max_seq_len=64",
    "model.transformer.dropout=0.1",
    "schedule=constant",
    "model.schedule.warmup=2",
    "trainer.max_steps=24",
]
SFT = [
    "model.init_from=reference/pretrain",
    "data.path=chats.jsonl",
    "data.sequence_length=64",
    "data.micro_batch_size=4",
    "data.global_batch_size=8",
    "data.num_epochs=null",
    "trainer.max_steps=24",
]
PPO = [
    "model.init_from=reference/sft",
    "~model.rewards.preference",
    "model.rewards.length={kind: length, target: 4, tolerance: 4}",
    "model.critic.init_from=null",
    "model.kl={kind: adaptive, coef: 0.1, target: 0.01, horizon: 100}",
    "model.reward_shaping.normalize=true",
    "model.sampling.max_new_tokens=6",
    "model.update.num_epochs=1",
    "model.update.num_minibatches=2",
    "data.path=chats.jsonl",
    "data.prompts_per_step=4",
    "data.num_episodes=48",
    "trainer.max_steps=null",
    "trainer.gradient_clip_val=null",
]
RUNS: dict[str, tuple[str, list[str]]] = {
    "pretrain": ("pretrain.yaml", [*PRETRAIN, "optim=muon"]),
    "pretrain_in_background": (
        "pretrain.yaml",
        [*PRETRAIN, "optim=adamw", "callbacks.checkpointing.asynchronous=true"],
    ),
    "sft": ("sft.yaml", SFT),
    "ppo": ("ppo.yaml", PPO),
}
NEEDS = {"sft": ["pretrain"], "ppo": ["pretrain", "sft"]}


def make_project(folder: Path) -> None:
    """A corpus and conversations, in a folder of their own."""
    texts = {"a": [f"document number {i}, and some more of it" for i in range(40)]}
    tiny_corpus(folder, texts, {"a": ["never seen before, neither of them"] * 2})
    rows_file(folder / "chats.jsonl", chats(60))


def command(name: str, run_folder: str) -> list[str]:
    """The words after `lmstack` that start a run, or go on with it."""
    root, overrides = RUNS[name]
    where = f"trainer.default_root_dir={run_folder}"
    return ["fit", "--config", str(CONF / root), *SHARED, *overrides, where, "ckpt_path=last"]


class SampleOrder(L.Callback):
    """Writes a line for each sample it is handed: the number of the step, and a hash."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any) -> None:
        if isinstance(batch, PromptBatch):
            samples = [json.dumps(sample).encode() for sample in zip(batch.prompts, batch.rows, batch.ids.tolist())]
        else:
            samples = [row.numpy().tobytes() for part in batch for row in part.input_ids]
        with open(self.path, "a") as file:
            file.write("".join(f"{trainer.global_step} {hashlib.sha256(sample).hexdigest()}\n" for sample in samples))


def outcome(run_folder: Path) -> dict[str, Any]:
    """All that has to be the same: the last checkpoint, the metrics but for times, the samples of every step."""
    newest = newest_valid_checkpoint(run_folder)
    assert newest is not None, f"{run_folder} has no checkpoint"
    manifest = json.loads((newest / "manifest.json").read_text())
    hashes = {name: entry["sha256"] for name, entry in manifest["files"].items() if name.endswith(".safetensors")}
    state = torch.load(newest / "training_state.pt", weights_only=True)
    state.pop("loops")  # what Lightning counts besides steps, such as batches fetched, differs after a resume
    rows = [
        {name: value for name, value in row.items() if not name.startswith(TIMES)}
        for row in read_metrics(run_folder / "metrics.csv")
    ]
    order = defaultdict(set)  # a step that is taken again must see the same samples
    for line in (run_folder / ORDER).read_text().splitlines():
        step, _, digest = line.partition(" ")
        order[int(step)].add(digest)
    return {"checkpoint": newest.name, "weights": hashes, "state": state, "metrics": rows, "order": dict(order)}


def first_difference(a: Any, b: Any, where: str = "") -> str | None:
    """Where two outcomes differ; None where they do not, bit for bit."""
    if type(a) is not type(b):
        return f"{where}: {type(a).__name__} and {type(b).__name__}"
    if isinstance(a, torch.Tensor):
        is_same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        return None if is_same else f"{where}: tensors differ"
    if isinstance(a, dict):
        if list(a) != list(b) and sorted(map(str, a)) != sorted(map(str, b)):
            return f"{where}: keys {sorted(map(str, a.keys() ^ b.keys()))}"
        pairs = [(a[key], b[key], f"{where}.{key}") for key in a]
    elif isinstance(a, list | tuple):
        if len(a) != len(b):
            return f"{where}: {len(a)} and {len(b)} entries"
        pairs = [(x, y, f"{where}[{i}]") for i, (x, y) in enumerate(zip(a, b))]
    else:
        return None if a == b else f"{where}: {a!r} and {b!r}"
    return next((found for pair in pairs if (found := first_difference(*pair))), None)
