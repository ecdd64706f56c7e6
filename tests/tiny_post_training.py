"""A tiny run of each post-training stage, for tests of resume and of ranks."""

from pathlib import Path
from typing import Any

import lightning as L
import torch

from lmstack.data.batch import IGNORE_INDEX, TokenBatch
from lmstack.losses.preference_kinds import DPOLoss, KTOLoss
from lmstack.nn.lora import LoRAConfig
from lmstack.stages import SupervisedModule
from lmstack.stages.dpo import DPO
from lmstack.stages.reward_model import RewardModel
from lmstack.stages.sft import SFT
from tiny_preferences import preferences, random_rankings, stage_arguments
from tiny_run import StepData, batch_of, random_rows, tiny_config, tiny_trainer

LORA = LoRAConfig(rank=2, alpha=4.0, dropout=0.2)
STAGES = ("sft", "sft_lora", "reward_model", "reward_model_centred", "dpo", "dpo_lora", "kto")


def build(name: str, *, seed: int = 0, dropout: float = 0.2) -> SupervisedModule:
    torch.manual_seed(seed)
    arguments = stage_arguments(transformer=tiny_config(dropout=dropout))
    if name.endswith("_lora"):
        arguments["lora"] = LORA if dropout else LoRAConfig(rank=2, alpha=4.0)
    if name.startswith("sft"):
        return SFT(**arguments)
    if name.startswith("reward_model"):
        return RewardModel(**arguments, centering_coef=0.1 if name.endswith("centred") else 0.0)
    return DPO(KTOLoss() if name == "kto" else DPOLoss(), **arguments)


def answers(seed: int) -> TokenBatch:
    lengths = [9, 3, 6, 4]
    batch = batch_of(random_rows(4, lambda i: lengths[(i + seed) % 4], seed=seed), 12)
    batch.labels[:, 0] = IGNORE_INDEX
    return batch


def micro_batch(name: str, seed: int) -> Any:
    return answers(seed) if name.startswith("sft") else preferences(random_rankings(2, seed=seed), width=12)


def data(name: str, num_steps: int) -> StepData:
    steps = [[micro_batch(name, 2 * step), micro_batch(name, 2 * step + 1)] for step in range(num_steps)]
    return StepData(steps, [micro_batch(name, 999)])


class Shares(StepData):
    """Each process takes its contiguous share of four micro-batches."""

    def __init__(self, name: str) -> None:
        super().__init__([])
        self.micro_batches = [micro_batch(name, seed) for seed in range(4)]

    def share(self) -> list[Any]:
        per_rank = len(self.micro_batches) // self.trainer.world_size
        start = self.trainer.global_rank * per_rank
        return self.micro_batches[start : start + per_rank]

    def train_dataloader(self) -> Any:
        self.steps = [self.share()]
        return super().train_dataloader()

    def val_dataloader(self) -> Any:
        self.validation = self.share()
        return super().val_dataloader()


class Gradients(L.Callback):
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self.values = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}


def one_step(names: list[str], world_size: int, out: Path) -> None:
    """Validate and take a step of each stage; the first process writes gradients and metrics."""
    torch.set_num_threads(1)
    results = {}
    for name in names:
        gradients = Gradients()
        trainer = tiny_trainer(
            out.parent / name,
            [gradients],
            precision="64-true",
            devices=world_size,
            strategy="ddp" if world_size > 1 else "auto",
        )
        stage, shares = build(name, dropout=0.0), Shares(name)
        metrics = dict(trainer.validate(stage, shares, verbose=False)[0])
        trainer.fit(stage, shares)
        results[name] = {"gradients": gradients.values, "metrics": metrics}
    if trainer.is_global_zero:
        torch.save(results, out)
