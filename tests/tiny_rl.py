"""Reinforcement learning that can be enumerated: tiny policies, prompts in memory, exact objectives."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lmstack.data.batch import PromptBatch
from lmstack.models import TransformerConfig
from lmstack.models.config import DenseConfig, DepthScaledInit, RotaryConfig
from lmstack.optim.optimizers import AdamWConfig
from lmstack.optim.schedules import ConstantSchedule
from lmstack.rl.kl_control import FixedKL
from lmstack.rl.rewards import Sample
from lmstack.rl.rollout import SamplingConfig
from lmstack.rl.update import UpdateConfig
from lmstack.rl.verifiable import FunctionReward
from lmstack.stages.ppo import PPO, SeparateCritic
from tiny_run import tiny_trainer

NUM_PROMPTS, NUM_ACTIONS, FIRST_ACTION, VOCAB = 8, 16, 8, 32
KL_COEF = 0.1
OPTIMUM, START = 0.7920, 0.4984


class PromptSteps(L.LightningDataModule):
    """Hands out given rollouts' prompts; rank r of w takes its contiguous share."""

    stop_ids: tuple[int, ...] = ()

    def __init__(self, rollouts: Sequence[Sequence[list[int]]], stop_ids: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.rollouts, self.stop_ids = rollouts, stop_ids

    def train_dataloader(self) -> "PromptLoader":
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return PromptLoader(self.rollouts, rank, world)

    def val_dataloader(self) -> list[PromptBatch]:
        return []


class PromptLoader:
    def __init__(self, rollouts: Sequence[Sequence[list[int]]], rank: int, world: int) -> None:
        self.rollouts, self.rank, self.world, self.position = rollouts, rank, world, 0

    def __len__(self) -> int:
        return len(self.rollouts)

    def __iter__(self) -> Iterator[PromptBatch]:
        while self.position < len(self.rollouts):
            prompts = self.rollouts[self.position]
            before = sum(len(p) for p in self.rollouts[: self.position])
            own = range(self.rank * len(prompts) // self.world, (self.rank + 1) * len(prompts) // self.world)
            self.position += 1
            rows = [{"number": before + i} for i in own]
            yield PromptBatch([list(prompts[i]) for i in own], rows, torch.tensor([before + i for i in own]))

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def bandit_config(**changes: Any) -> TransformerConfig:
    shape = {
        "vocab_size": VOCAB,
        "max_seq_len": 16,
        "dim": 64,
        "num_layers": 2,
        "num_heads": 4,
        "positions": RotaryConfig(),
        "feed_forward": DenseConfig(hidden_dim=256),
        "initialization": DepthScaledInit(std=0.02),
        "tied_embeddings": False,
        "head_bias": True,
    }
    return TransformerConfig(**(shape | changes))


def mask_all_but(policy: Any, allowed: range) -> None:
    """A frozen head bias of -1e4 on every other token."""
    policy.head_bias.data.fill_(-1e4)
    policy.head_bias.data[allowed.start : allowed.stop] = 0.0
    policy.head_bias.requires_grad_(False)


def bandit_rewards(samples: Sequence[Sample]) -> list[float]:
    return [((7 * s.prompt_ids[0] + 3 * (s.response_ids[0] - FIRST_ACTION)) % 16) / 15 for s in samples]


def bandit_table() -> torch.Tensor:
    c, a = torch.arange(NUM_PROMPTS)[:, None], torch.arange(NUM_ACTIONS)[None]
    return ((7 * c + 3 * a) % 16) / 15


def bandit_log_probs(policy: Any) -> torch.Tensor:
    with torch.no_grad():
        hidden = policy(torch.arange(NUM_PROMPTS)[:, None])
        log_probs = policy.logits(hidden)[:, 0].double().log_softmax(-1)
    return log_probs[:, FIRST_ACTION : FIRST_ACTION + NUM_ACTIONS]


def bandit_objective(policy: Any, reference: Any, kl_coef: float = KL_COEF) -> float:
    """E[r] - kl_coef KL(policy || reference), averaged over prompts, by enumeration."""
    log_probs, ref = bandit_log_probs(policy), bandit_log_probs(reference)
    probs = log_probs.exp()
    return float((probs * (bandit_table() - kl_coef * (log_probs - ref))).sum(1).mean())


def bandit_prompts(num_updates: int, per_update: int = 64) -> list[list[list[int]]]:
    return [[[i % NUM_PROMPTS] for i in range(per_update)] for _ in range(num_updates)]


def bandit_arguments(**changes: Any) -> dict[str, Any]:
    arguments = {
        "optimizer": AdamWConfig(lr=1e-3, weight_decay=0.0, betas=(0.9, 0.999)),
        "schedule": ConstantSchedule(),
        "rewards": {"table": FunctionReward("tiny_rl.bandit_rewards")},
        "sampling": SamplingConfig(max_new_tokens=1),
        "update": UpdateConfig(num_epochs=4, num_minibatches=4, micro_batch_size=64),
        "kl": FixedKL(KL_COEF),
    }
    return arguments | changes


def bandit_ppo(seed: int = 0, **changes: Any) -> PPO:
    torch.manual_seed(seed)
    stage = PPO(transformer=bandit_config(), **(bandit_arguments(critic=SeparateCritic()) | changes))
    mask_all_but(stage.transformer, range(FIRST_ACTION, FIRST_ACTION + NUM_ACTIONS))
    return stage


def fit(stage: Any, folder: Path, rollouts: Sequence[Sequence[list[int]]], **options: Any) -> Any:
    stop_ids = options.pop("stop_ids", ())
    ckpt_path = options.pop("ckpt_path", None)
    seed = options.pop("seed", 0)
    trainer = tiny_trainer(folder, options.pop("callbacks", None), **options)
    torch.manual_seed(seed)
    trainer.fit(stage, PromptSteps(rollouts, stop_ids), ckpt_path=ckpt_path)
    return trainer
