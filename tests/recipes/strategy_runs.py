"""Trains a tiny transformer several times in the same processes, each time as a line of a JSON file says.

`python strategy_runs.py runs.json world_size`: each run is `{"name", "strategy", "steps", "folder", "resume", ...}`;
`strategy` is a file of `conf/strategy`, with `changes` to it. Results are written to `<folder>/result.pt`.
"""

import copy
import importlib
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import lightning as L
import torch
import yaml
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.precision import DoublePrecision

from lmstack.callbacks import Checkpointing, FolderCheckpointIO, TrainingDynamics
from lmstack.data.rank import Rank
from lmstack.models import TransformerConfig
from lmstack.models.activation_checkpointing import read_choice
from lmstack.models.config import AttentionConfig, DenseConfig, DepthScaledInit, RotaryConfig
from lmstack.models.transformer import deferred_weights
from lmstack.optim.optimizers import AdamWConfig, MuonConfig
from lmstack.optim.schedules import ConstantSchedule
from tiny_run import StepData, batch_of, random_rows, tiny_stage, tiny_trainer

CONF = Path(__file__).parents[2] / "conf" / "strategy"
ROWS_PER_STEP = 8
LENGTHS = (9, 3, 12, 1, 7, 5, 11, 2)


def config(**changes: Any) -> TransformerConfig:
    shape = {
        "vocab_size": 61,
        "max_seq_len": 16,
        "dim": 32,
        "num_layers": 4,
        "num_heads": 4,
        "positions": RotaryConfig(),
        "attention": AttentionConfig(qk_norm=True),
        "feed_forward": DenseConfig(hidden_dim=64),
        "initialization": DepthScaledInit(std=0.1),
        "tied_embeddings": True,
    }
    return TransformerConfig(**(shape | changes))


SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "untied": {"tied_embeddings": False, "num_kv_heads": 2, "logit_softcap": 5.0},
    "gpt2": {
        "attention": AttentionConfig(qkv_bias=True, out_bias=True),
        "feed_forward": DenseConfig(hidden_dim=64, activation="gelu_tanh", gated=False, bias=True),
    },
}


class SharedRows(StepData):
    """Rows of unequal lengths, shared out over the processes that have different data."""

    def __init__(self, num_steps: int, *, even: bool = False) -> None:
        super().__init__([[]])
        self.num_steps = num_steps
        self.length = 12
        count = num_steps * ROWS_PER_STEP
        self.rows = random_rows(count, lambda i: self.length if even else LENGTHS[i % len(LENGTHS)])
        self.held_out = random_rows(8, lambda i: LENGTHS[-i], seed=9)

    def train_dataloader(self) -> Any:
        rank = Rank.of(self.trainer)
        self.steps = []
        for step in range(self.num_steps):
            first = step * ROWS_PER_STEP
            share = [self.rows[first + i] for i in rank.share(ROWS_PER_STEP)]
            self.steps.append([batch_of(share[i : i + 2], self.length) for i in range(0, len(share), 2)])
        return super().train_dataloader()

    def val_dataloader(self) -> Any:
        rank = Rank.of(self.trainer)
        self.validation = [batch_of([self.held_out[i] for i in rank.share(8)], self.length)]
        return super().val_dataloader()

    def tokens_at_step(self, step: int) -> int:
        return sum(len(row) - 1 for row in self.rows[: step * ROWS_PER_STEP])


class History(L.Callback):
    """The weights before the first step, and the loss and the gradient's norm of every step."""

    def __init__(self) -> None:
        self.initial: dict[str, torch.Tensor] = {}
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        whole_weights = getattr(trainer.strategy, "whole_weights", pl_module.state_dict)
        self.initial = copy.deepcopy(whole_weights() or {})

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.norms.append(float(trainer.callback_metrics["train/grad_norm"]))


class Trouble(L.Callback):
    """Steps whose loss is infinite, or whose update is left out or taken back."""

    def __init__(self, infinite: list[int], skipped: list[int], undone: list[int]) -> None:
        self.infinite, self.skipped, self.undone = infinite, skipped, undone
        self.kept: list[Any] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        def judge(_: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
            return ~norm.isfinite() | torch.tensor(trainer.global_step in self.skipped)

        pl_module.update_guard = judge

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        pl_module.z_loss_coef = float("inf") if trainer.global_step in self.infinite else 0.0
        if trainer.global_step in self.undone:
            strategy = trainer.strategy
            state = strategy.lightning_module_state_dict()
            self.kept = copy.deepcopy([state, strategy.optimizer_state(trainer.optimizers[0])])
            if trainer.world_size > 1:
                torch.distributed.broadcast_object_list(self.kept)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step - 1 in self.undone:
            trainer.strategy.load_model_state_dict({"state_dict": self.kept[0]})
            trainer.strategy.load_optimizer_state_dict({"optimizer_states": [self.kept[1]]})


class Measured(Logger):
    """What `TrainingDynamics` logs."""

    name, version = "measured", 0

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.values |= {f"{step} {name}": value for name, value in metrics.items() if name.startswith("dynamics/")}

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


def strategy_of(name: str, changes: dict[str, Any]) -> Any:
    """What a preset says, with changes."""
    node = yaml.safe_load((CONF / f"{name}.yaml").read_text())["strategy"]
    if isinstance(node, str):
        return node
    module, _, kind = node.pop("class_path").rpartition(".")
    return getattr(importlib.import_module(module), kind)(**node | changes)


def precision_of(name: str) -> dict[str, Any]:
    """Lightning refuses float64 by name for some strategies, but not its plugin; a split is checked sharpest in it."""
    if name == "64-true":
        return {"plugins": [FolderCheckpointIO(), DoublePrecision()]}
    return {"precision": name}


OPTIMIZERS = {
    "adamw": AdamWConfig(lr=1e-3),
    "adamw_masters": AdamWConfig(lr=1e-3, master_weights=True),
    "muon": MuonConfig(lr=1e-3, adamw_lr=1e-3),
    # So large an epsilon leaves lr / eps times the gradient: plain SGD.
    "sgd": AdamWConfig(lr=1e5, eps=1e6, betas=(0.0, 0.0), weight_decay=0.0),
}


def run(spec: dict[str, Any], world_size: int) -> None:
    folder = Path(spec["folder"])
    L.seed_everything(spec.get("seed", 1), verbose=False)
    shape = SHAPES[spec.get("shape", "llama")] | spec.get("shape_changes", {})
    with deferred_weights() if spec.get("deferred") else nullcontext():
        stage = tiny_stage(
            config=config(**shape),
            optimizer=OPTIMIZERS[spec.get("optimizer", "adamw")],
            schedule=ConstantSchedule(warmup=2),
            activation_checkpointing=read_choice(spec.get("activation_checkpointing")),
            **spec.get("stage", {}),
        )
    history = History()
    measured = Measured()
    saving = {"every_n_steps": spec.get("save_every"), "keep_last": 99, "sharded": spec.get("sharded", False)}
    callbacks = [history, Checkpointing(**saving)]
    if spec.get("dynamics"):
        callbacks.append(TrainingDynamics(1))
    if "trouble" in spec:
        callbacks.append(Trouble(*spec["trouble"]))
    trainer = tiny_trainer(
        folder,
        callbacks,
        logger=measured,
        devices=world_size,
        strategy=strategy_of(spec["strategy"], spec.get("changes", {})),
        **precision_of(spec.get("precision", "32-true")),
        gradient_clip_val=spec.get("clip"),
        max_steps=spec["steps"],
        max_epochs=-1,
        val_check_interval=1000,  # the last step is always followed by one
    )
    data = SharedRows(spec.get("planned_steps", spec["steps"]), even=spec.get("even", False))
    trainer.fit(stage, data, ckpt_path=spec.get("resume"))
    if trainer.is_global_zero:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        found = {"losses": history.losses, "norms": history.norms, "val": metrics, "dynamics": measured.values}
        torch.save(found | {"initial": history.initial}, folder / "result.pt")


def main() -> None:
    torch.set_num_threads(1)
    for spec in json.loads(Path(sys.argv[1]).read_text()):
        run(spec, int(sys.argv[2]))


if __name__ == "__main__":
    main()
