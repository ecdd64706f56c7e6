"""Stages of reinforcement learning on prompts and responses of several lengths, for tests of one update."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lmstack.data.batch import IGNORE_INDEX
from lmstack.models import Transformer, TransformerConfig
from lmstack.models.checkpoint import save_weights
from lmstack.models.config import GaussianInit
from lmstack.models.heads import ScoringTransformer, save_scorer
from lmstack.optim.optimizers import AdamWConfig
from lmstack.optim.schedules import ConstantSchedule
from lmstack.rl.kl_control import FixedKL
from lmstack.rl.rewards import Sample
from lmstack.rl.rollout import Rollout, SamplingConfig
from lmstack.rl.update import UpdateConfig
from lmstack.rl.verifiable import FunctionReward
from lmstack.stages.grpo import GRPO
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
    return [sum(TABLE[token % VOCAB] for token in sample.response_ids) for sample in samples]


def some_equal(samples: Sequence[Sample]) -> list[float]:
    """The same for every response to a prompt that begins with an even token."""
    return [
        0.5 if sample.prompt_ids[0] % 2 == 0 else sum(TABLE[token % VOCAB] for token in sample.response_ids)
        for sample in samples
    ]


def all_equal(samples: Sequence[Sample]) -> list[float]:
    return [0.3] * len(samples)


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


class Moment:
    """The models and the rollout as they are before the update of a rollout."""

    def __init__(self, stage: Any, number: int) -> None:
        prepare = stage.prepare

        def watched(rollout: Rollout) -> Any:
            prepared = prepare(rollout)
            if stage.num_rollouts == number:
                self.rollout, self.metrics = prepared
                self.reference = stage.collector.reference
                self.policy = copy.deepcopy(stage.transformer)
                self.critic = copy.deepcopy(getattr(stage, "critic", None))
                self.value_head = copy.deepcopy(getattr(stage, "value_head", None))
            return prepared

        stage.prepare = watched  # type: ignore[method-assign]

    def value(self, ids: Tensor) -> Tensor:
        """At every position of one row."""
        if self.critic is not None:
            return self.critic(ids)[0]
        return self.value_head(self.policy(ids))[0]  # type: ignore[misc]

    def rows(self) -> list[tuple[Tensor, range]]:
        """The tokens of each row without padding, and the positions before its response's tokens."""
        found = []
        for ids, labels, length in zip(self.rollout.input_ids, self.rollout.labels, self.rollout.lengths, strict=True):
            slots = (labels != IGNORE_INDEX).nonzero()[:, 0].tolist()
            found.append((ids[None, :length], range(slots[0], slots[-1] + 1)))
        return found


def gradients_of(moment: Moment, loss: Tensor) -> dict[str, Tensor]:
    modules = {"transformer": moment.policy, "critic": moment.critic, "value_head": moment.value_head}
    for module in modules.values():
        if module is not None:
            module.zero_grad()
    loss.backward()
    return {
        f"{prefix}.{name}": parameter.grad
        for prefix, module in modules.items()
        if module is not None
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
