"""lmstack's side of `rlhf_vs_trl.py`: its stages in plain Lightning trainers, with the weights and data of the tasks.

Imported in TRL's environment too, by the worker: the imports of lmstack are inside the functions.
"""

import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rlhf_vs_trl_tasks import (
    ADAM_EPS,
    BETAS,
    CLIP_RANGE,
    DPO_BETA,
    GAE_LAMBDA,
    GAMMA,
    KL_COEF,
    NUM_ACTIONS,
    NUM_EPOCHS,
    NUM_MINIBATCHES,
    SHAPES,
    VALUE_CLIP,
    VALUE_COEF,
    Shape,
    bandit_objective,
    examples,
    head_bias,
    initial_weights,
    llama_values,
    lr_of,
    prompts_of,
    reward_of,
    score_weight,
)
from torch import Tensor

PACKAGES = ("lightning",)
MAX_UPDATES = 1_000_000  # never reached: the parent ends the run
IGNORED = -100


def rule(samples: Any) -> list[float]:
    """The rule's reward, as `FunctionReward` finds it by the name of this function.

    Args:
        samples: Of `lmstack.rl.rewards.Sample`, whose records name the size.
    """
    return [reward_of(SHAPES[s.row["size"]], s.prompt_ids, s.response_ids) for s in samples]


def size_of(shape: Shape) -> str:
    """The name of a shape.

    Args:
        shape: The size.
    """
    return next(name for name, known in SHAPES.items() if known == shape)


# ---- weights ---------------------------------------------------------------------------------------------------------


def save_policy(folder: Path, shape: Shape, seed: int, *, can_end: bool) -> Any:
    """Write the first weights of a policy; returns its config.

    Args:
        folder: Where to.
        shape: The size.
        seed: Of the draw.
        can_end: Whether the end may be predicted; a policy that generates has a frozen bias against it instead.
    """
    from lmstack.models.checkpoint import save_weights
    from lmstack.models.families import from_hugging_face

    config, state = from_hugging_face(llama_values(shape), initial_weights(shape, seed))
    if not can_end:
        config, state = replace(config, head_bias=True), state | {"head_bias": head_bias(shape)}
    save_weights(folder, (state, config))
    return config


def save_scorer(folder: Path, shape: Shape, seed: int) -> None:
    """Write the first weights of a reward model or critic.

    Args:
        folder: Where to.
        shape: The size.
        seed: Of the draw.
    """
    from lmstack.models import Transformer
    from lmstack.models.families import from_hugging_face
    from lmstack.models.heads import ScoringTransformer
    from lmstack.models.heads import save_scorer as save

    config, state = from_hugging_face(llama_values(shape), initial_weights(shape, seed))
    scorer = ScoringTransformer(Transformer(config))
    scorer.transformer.load_state_dict(state)
    scorer.score_head.weight.data.copy_(score_weight(shape, seed)[0])
    save(folder, scorer)


# ---- the trainer -----------------------------------------------------------------------------------------------------


class Loader:
    """Items in turn, without end.

    Args:
        item_at: The item of an update, from its number.
    """

    def __init__(self, item_at: Callable[[int], Any]) -> None:
        self.item_at = item_at

    def __len__(self) -> int:
        return MAX_UPDATES

    def __iter__(self) -> Iterator[Any]:
        return map(self.item_at, range(MAX_UPDATES))


def train(updates: Any, stage: Any, folder: str, item_at: Callable[[int], Any], **changes: Any) -> None:
    """Run a stage, an update each time it may.

    Args:
        updates: When to go on.
        stage: The stage.
        folder: For what it writes.
        item_at: What its loader hands out.
        **changes: Further arguments of the trainer.
    """
    import lightning.pytorch as pl

    from lmstack.callbacks import LearningRateLogger, MetricsCsv

    losses: deque[Tensor] = deque(maxlen=10)
    measure_policy = updates.measure

    class Gate(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            updates.measure = lambda: measure_policy() or last_values(trainer, losses)
            count = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
            trainer.should_stop = not updates.start(count)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:  # noqa: ARG002
            if outputs is not None and "loss" in outputs:
                losses.append(outputs["loss"].detach())
            if not updates.step_done():
                trainer.should_stop = True

    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> Loader:
            return Loader(item_at)

    arguments = {
        "accelerator": "cpu",
        "devices": 1,
        "precision": "32-true",
        "max_epochs": 1,
        "check_val_every_n_epoch": None,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 10,
        "use_distributed_sampler": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "default_root_dir": folder,
        "logger": MetricsCsv(folder),
        "callbacks": [LearningRateLogger(), Gate()],
        **changes,
    }
    pl.Trainer(**arguments).fit(stage, datamodule=Data())


def last_values(trainer: Any, losses: deque[Tensor]) -> dict[str, float]:
    """The mean reward of the last rollout, or the mean loss of the last steps.

    Args:
        trainer: Whose logged values are looked at.
        losses: Of the last steps.
    """
    if "reward/total" in trainer.callback_metrics:
        return {"reward": float(trainer.callback_metrics["reward/total"])}
    return {"loss": float(torch.stack(list(losses)).mean())} if losses else {}


def common(shape: Shape) -> dict[str, Any]:
    """Optimizer and schedule of every algorithm.

    Args:
        shape: The size.
    """
    from lmstack.cli.lean_imports import import_lightning
    from lmstack.cli.quiet import after_lightning

    import_lightning({"model": {"compile_blocks": False}})
    after_lightning()
    from lmstack.optim.optimizers import AdamWConfig
    from lmstack.optim.schedules import ConstantSchedule

    optimizer = AdamWConfig(lr_of(shape), betas=BETAS, eps=ADAM_EPS, weight_decay=0.0)
    return {"optimizer": optimizer, "schedule": ConstantSchedule()}


# ---- data ------------------------------------------------------------------------------------------------------------


def token_batches(shape: Shape, seed: int) -> list[Any]:
    """Demonstrations: a prompt and its better answer a row, of which the answer and its end are trained.

    Args:
        shape: The size.
        seed: Of the draw.
    """
    from lmstack.data.batch import TokenBatch

    rows = examples(shape, seed)
    tokens = torch.tensor([[*p, *a, shape.end] for p, a in zip(rows.prompts, rows.better, strict=True)])
    input_ids, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].clone()
    labels[:, : shape.prompt_length - 1] = IGNORED
    position_ids = torch.arange(input_ids.shape[1]).expand_as(input_ids).contiguous()
    num_bytes = torch.ones(len(tokens), dtype=torch.int64)
    whole = (input_ids, labels, torch.zeros_like(input_ids), position_ids, num_bytes)
    return [TokenBatch(*part) for part in zip(*(column.split(shape.rows) for column in whole), strict=True)]


def preference_batches(shape: Shape, seed: int) -> list[Any]:
    """Pairs, the better answer in the even rows.

    Args:
        shape: The size.
        seed: Of the draw.
    """
    from lmstack.data.batch import PreferenceBatch

    rows = examples(shape, seed)
    batches = []
    for first in range(0, len(rows.prompts), shape.rows):
        chosen = slice(first, first + shape.rows)
        columns = zip(rows.prompts[chosen], rows.better[chosen], rows.worse[chosen], strict=True)
        tokens = torch.tensor([[*p, *a, shape.end] for p, *answers in columns for a in answers])
        labels = torch.full_like(tokens, IGNORED)
        labels[:, shape.prompt_length - 1 : -1] = tokens[:, shape.prompt_length :]
        even = torch.arange(0, len(tokens), 2)
        batches.append(
            PreferenceBatch(
                input_ids=tokens,
                labels=labels,
                lengths=torch.full((len(tokens),), tokens.shape[1]),
                better=even,
                worse=even + 1,
                pair_weight=torch.ones(len(even)),
                margin=torch.zeros(len(even)),
                is_tie=torch.zeros(len(even), dtype=torch.bool),
                group=torch.arange(len(tokens)) // 2,
                desirability=torch.tensor([1.0, -1.0]).repeat(len(even)),
                demonstration=torch.zeros(len(tokens), dtype=torch.bool),
            )
        )
    return batches


def prompt_batches(shape: Shape, seed: int, count: int) -> Callable[[int], Any]:
    """The prompts of a rollout, from its number.

    Args:
        shape: The size.
        seed: Of the draw.
        count: Prompts of a rollout: all of them, as often as it takes, in a random order.
    """
    from lmstack.data.batch import PromptBatch

    prompts, row = prompts_of(shape, seed).tolist(), {"size": size_of(shape)}

    def at(number: int) -> Any:
        generator = torch.Generator().manual_seed(seed + 1_000_003 * (number + 1))
        passes = [torch.randperm(len(prompts), generator=generator) for _ in range(-(-count // len(prompts)))]
        chosen = torch.cat(passes)[:count].tolist()
        return PromptBatch(
            [prompts[i] for i in chosen], [row] * count, torch.arange(number * count, (number + 1) * count)
        )

    return at


# ---- stages ----------------------------------------------------------------------------------------------------------


def action_log_probs(transformer: Any) -> Tensor:
    """Of the bandit's actions under each of its prompts.

    Args:
        transformer: The policy.
    """
    with torch.no_grad():
        logits = transformer.logits(transformer(prompts_of(SHAPES["tiny"], 0)))[:, -1].float()
    return logits.log_softmax(-1)[:, :NUM_ACTIONS]


def objective_of(stage: Any, shape: Shape) -> Callable[[], dict[str, float]]:
    """The exact value of the policy as it learns; nothing where it cannot be enumerated.

    Args:
        stage: Of which the first measurement is that of the reference.
        shape: The size.
    """
    reference: list[Tensor] = []

    def measure() -> dict[str, float]:
        log_probs = action_log_probs(stage.transformer)
        reference.append(log_probs)
        return bandit_objective(log_probs, reference[0])

    return measure if shape.is_bandit else dict


def policy_arguments(
    shape: Shape, folder: Path, seed: int, *, with_model: bool, micro_batch_size: int
) -> dict[str, Any]:
    """What PPO and GRPO have in common.

    Args:
        shape: The size.
        folder: For the weights.
        seed: Of the run.
        with_model: Whether a reward model scores where it is not the bandit; else the rule does.
        micro_batch_size: Responses scored at once, as many as TRL is told to.
    """
    from lmstack.rl.kl_control import FixedKL
    from lmstack.rl.reward_model import RewardModelReward
    from lmstack.rl.rollout import SamplingConfig
    from lmstack.rl.update import UpdateConfig
    from lmstack.rl.verifiable import FunctionReward

    save_scorer(folder / "scorer", shape, seed + 1)
    by_model = with_model and not shape.is_bandit
    reward = RewardModelReward(str(folder / "scorer")) if by_model else FunctionReward(f"{__name__}.rule")
    return {
        "transformer": save_policy(folder / "policy", shape, seed, can_end=False),
        "init_from": str(folder / "policy"),
        "rewards": {"reward": reward},
        "sampling": SamplingConfig(shape.response_length),
        "kl": FixedKL(KL_COEF),
        "update": UpdateConfig(NUM_EPOCHS, NUM_MINIBATCHES, micro_batch_size=micro_batch_size),
        "clip_range": CLIP_RANGE,
    }


def run_ppo(make_updates: Any, shape: Shape, seed: int) -> None:
    """`lmstack.stages.ppo`.

    Args:
        make_updates: `Updates`.
        shape: The size.
        seed: Of the run.
    """
    settings = common(shape)
    from lmstack.stages.ppo import PPO, SeparateCritic

    updates = make_updates(*PACKAGES)
    updates.watch_collector()
    with tempfile.TemporaryDirectory() as folder:
        stage = PPO(
            **settings,
            **policy_arguments(shape, Path(folder), seed, with_model=True, micro_batch_size=shape.episodes),
            critic=SeparateCritic(init_from=f"{folder}/scorer"),
            gamma=GAMMA,
            gae_lambda=GAE_LAMBDA,
            value_clip_range=VALUE_CLIP,
            value_coef=VALUE_COEF,
        )
        stage.transformer.head_bias.requires_grad_(False)
        updates.measure = objective_of(stage, shape)
        train(updates, stage, folder, prompt_batches(shape, seed, shape.episodes))


def run_grpo(make_updates: Any, shape: Shape, seed: int) -> None:
    """`lmstack.stages.grpo` with the loss that TRL calls `grpo`.

    Args:
        make_updates: `Updates`.
        shape: The size.
        seed: Of the run.
    """
    settings = common(shape)
    from lmstack.stages.grpo import GRPO, LossKL

    updates = make_updates(*PACKAGES)
    minibatch = shape.episodes // NUM_MINIBATCHES
    with tempfile.TemporaryDirectory() as folder:
        stage = GRPO(
            **settings,
            **policy_arguments(shape, Path(folder), seed, with_model=False, micro_batch_size=minibatch),
            samples_per_prompt=shape.group_size,
            baseline="normalized",
            aggregation="sequence_mean",
            kl_placement=LossKL("k3"),
        )
        stage.transformer.head_bias.requires_grad_(False)
        updates.measure = objective_of(stage, shape)
        train(updates, stage, folder, prompt_batches(shape, seed, shape.episodes // shape.group_size))


def run_sft(make_updates: Any, shape: Shape, seed: int) -> None:
    """`lmstack.stages.sft`.

    Args:
        make_updates: `Updates`.
        shape: The size.
        seed: Of the run.
    """
    settings = common(shape)
    from lmstack.stages.sft import SFT

    with tempfile.TemporaryDirectory() as folder:
        config = save_policy(Path(folder, "start"), shape, seed, can_end=True)
        stage = SFT(**settings, transformer=config, init_from=f"{folder}/start")
        batches = token_batches(shape, seed)
        turn = make_updates(*PACKAGES)
        train(turn, stage, folder, lambda step: [batches[step % len(batches)]], gradient_clip_val=1.0)


def run_reward_model(make_updates: Any, shape: Shape, seed: int) -> None:
    """`lmstack.stages.reward_model`.

    Args:
        make_updates: `Updates`.
        shape: The size.
        seed: Of the run.
    """
    settings = common(shape)
    from lmstack.stages.reward_model import RewardModel

    with tempfile.TemporaryDirectory() as folder:
        save_scorer(Path(folder, "start"), shape, seed)
        stage = RewardModel(**settings, init_from=f"{folder}/start")
        batches = preference_batches(shape, seed)
        turn = make_updates(*PACKAGES)
        train(turn, stage, folder, lambda step: [batches[step % len(batches)]], gradient_clip_val=1.0)


def run_dpo(make_updates: Any, shape: Shape, seed: int) -> None:
    """`lmstack.stages.dpo`.

    Args:
        make_updates: `Updates`.
        shape: The size.
        seed: Of the run.
    """
    settings = common(shape)
    from lmstack.losses.preference_kinds import DPOLoss
    from lmstack.stages.dpo import DPO

    with tempfile.TemporaryDirectory() as folder:
        config = save_policy(Path(folder, "start"), shape, seed, can_end=True)
        stage = DPO(DPOLoss(DPO_BETA), **settings, transformer=config, init_from=f"{folder}/start")
        batches = preference_batches(shape, seed)
        turn = make_updates(*PACKAGES)
        train(turn, stage, folder, lambda step: [batches[step % len(batches)]], gradient_clip_val=1.0)


LMSTACK = {
    "sft": run_sft,
    "reward_model": run_reward_model,
    "dpo": run_dpo,
    "ppo": run_ppo,
    "grpo": run_grpo,
}
