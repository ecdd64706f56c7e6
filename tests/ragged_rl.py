"""Stages of reinforcement learning on prompts and responses of several lengths, for tests of one update."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lmstack.models import Transformer, TransformerConfig
from lmstack.models.checkpoint import save_weights
from lmstack.models.config import GaussianInit
from lmstack.models.heads import ScoringTransformer, save_scorer
from lmstack.optim.optimizers import AdamWConfig
from lmstack.optim.schedules import ConstantSchedule
from lmstack.rl.kl_control import FixedKL
from lmstack.rl.rewards import Sample
from lmstack.rl.rollout import SamplingConfig
from lmstack.rl.verifiable import FunctionReward
from lmstack.stages.grpo import GRPO
from lmstack.stages.policy_optimization import UpdateConfig
from lmstack.stages.ppo import PPO, SeparateCritic
from tiny_rl import fit
from tiny_run import tiny_config

VOCAB = 12
STOP = (1, 2)
TABLE = torch.randn(VOCAB, generator=torch.Generator().manual_seed(9)).tolist()
FUSE: list[int] = []
"""Calls of the reward function until it kills the run; empty for never."""


def config(**changes: Any) -> TransformerConfig:
    return tiny_config(**({"vocab_size": VOCAB, "initialization": GaussianInit(0.3)} | changes))


def reward(samples: Sequence[Sample]) -> list[float]:
    if FUSE:
        FUSE[0] -= 1
        if FUSE[0] == 0:
            raise KeyboardInterrupt
    return [sum(TABLE[token] for token in sample.response_ids) for sample in samples]


def prompts(num_rollouts: int, per_rollout: int = 8) -> list[list[list[int]]]:
    generator = torch.Generator().manual_seed(2)
    return [
        [torch.randint(3, VOCAB, (1 + (i * 3 + r) % 5,), generator=generator).tolist() for i in range(per_rollout)]
        for r in range(num_rollouts)
    ]


def update(**changes: Any) -> UpdateConfig:
    """One step from the whole rollout, not clipped."""
    return UpdateConfig(
        **({"num_epochs": 1, "num_minibatches": 1, "micro_batch_size": 8, "max_grad_norm": 1e9} | changes)
    )


def arguments(**changes: Any) -> dict[str, Any]:
    defaults = {
        "transformer": config(),
        "optimizer": AdamWConfig(lr=3e-3, weight_decay=0.0),
        "schedule": ConstantSchedule(),
        "rewards": {"table": FunctionReward("ragged_rl.reward")},
        "sampling": SamplingConfig(max_new_tokens=5),
        "update": update(),
        "kl": FixedKL(0.1),
    }
    return defaults | changes


def ppo(seed: int = 0, **changes: Any) -> PPO:
    torch.manual_seed(seed)
    return PPO(**arguments(**({"critic": SeparateCritic()} | changes)))


def grpo(seed: int = 0, **changes: Any) -> GRPO:
    torch.manual_seed(seed)
    return GRPO(**arguments(**({"samples_per_prompt": 4} | changes)))


def weights(folder: Path, seed: int = 5, **changes: Any) -> str:
    """A folder of random weights of the policy's shape."""
    torch.manual_seed(seed)
    save_weights(folder, Transformer(config(**changes)))
    return str(folder)


def reward_model(folder: Path, seed: int = 6, **changes: Any) -> str:
    """A folder of a random reward model of the policy's shape."""
    torch.manual_seed(seed)
    scorer = ScoringTransformer(Transformer(config(**changes)))
    scorer.score_head.bias.data.fill_(0.4)
    save_scorer(folder, scorer)
    return str(folder)


class Recorder(L.Callback):
    """Gradients of the last step, what each rollout logged, and the optimizer steps made."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}
        self.rollouts: list[dict[str, float]] = []
        self.num_steps = 0

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self.gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}
        self.num_steps += 1

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.rollouts.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def train(stage: Any, folder: Path, num_rollouts: int = 1, **options: Any) -> tuple[Recorder, L.Trainer]:
    recorder = Recorder()
    callbacks = [recorder, *options.pop("callbacks", [])]
    rollouts = options.pop("rollouts", None) or prompts(num_rollouts)
    trainer = fit(stage, folder, rollouts, callbacks=callbacks, stop_ids=STOP, **options)
    return recorder, trainer


def assert_same_weights(one: Any, other: Any) -> None:
    for (name, ours), theirs in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
