"""What PPO and GRPO share: one update, whatever the split; the run's length, its seeds, its resume."""

import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

import ragged_rl
from lmstack.callbacks import Checkpointing, LearningRateLogger, WeightAverage
from lmstack.callbacks.metrics_csv import MetricsCsv, read_metrics
from lmstack.data.batch import PromptBatch
from lmstack.models.block import Block
from lmstack.models.checkpoint_folder import checkpoints_in, folder_name, newest_valid_checkpoint
from lmstack.nn.lora import LoRAConfig
from lmstack.optim.schedules import LinearSchedule
from lmstack.rl.kl_control import AdaptiveKL
from lmstack.rl.reward_shaping import RewardShaping
from lmstack.rl.rollout import SamplingConfig
from lmstack.rl.update import UpdateConfig
from lmstack.stages.grpo import RewardKL
from lmstack.stages.ppo import SharedCritic
from ragged_rl import assert_same_weights, config, grpo, ppo, prompts, train, update, weights
from tiny_rl import PromptLoader, PromptSteps
from tiny_run import tiny_trainer

STAGES = {
    "ppo": ppo,
    "ppo-shared": lambda seed=0, **changes: ppo(seed, critic=SharedCritic(), entropy_coef=0.01, **changes),
    "grpo": grpo,
}
every_stage = pytest.mark.parametrize("build", STAGES.values(), ids=STAGES)
Build = Callable[..., Any]


@pytest.fixture(autouse=True)
def _no_fuse() -> Iterator[None]:
    ragged_rl.FUSE.clear()
    yield
    ragged_rl.FUSE.clear()


@every_stage
def test_before_the_first_step_every_ratio_is_one(tmp_path: Path, build: Build) -> None:
    """Trap 33, with dropout configured and a temperature that is not 1."""
    stage = build(
        transformer=config(dropout=0.3),
        sampling=SamplingConfig(max_new_tokens=5, temperature=0.7),
        update=update(num_epochs=2, num_minibatches=2, micro_batch_size=3),
    )
    recorder, _ = train(stage, tmp_path, 3)
    assert [rollout["update/first_ratio_error"] < 1e-5 for rollout in recorder.rollouts] == [True] * 3
    assert all(rollout["rollout/sampler_error"] < 1e-4 for rollout in recorder.rollouts)
    assert recorder.rollouts[-1]["update/kl_from_sampling"] > 1e-6  # later minibatches do differ


def test_adapters_with_dropout_too(tmp_path: Path) -> None:
    lora = LoRAConfig(rank=2, alpha=8.0, dropout=0.5)
    recorder, _ = train(ppo(lora=lora, update=update(num_epochs=4)), tmp_path, 3)
    assert max(rollout["update/first_ratio_error"] for rollout in recorder.rollouts) < 1e-5
    assert recorder.rollouts[0]["kl/reference"] == 0.0
    assert recorder.rollouts[-1]["kl/reference"] != 0.0


SPLIT = {
    "ppo": ppo,
    "ppo-shared": STAGES["ppo-shared"],
    **{
        f"grpo-{aggregation}": lambda aggregation=aggregation, **changes: grpo(
            aggregation=aggregation, samples_per_prompt=2, skip_equal_groups=True, **changes
        )
        for aggregation in ("token_mean", "sequence_mean", "constant")
    },
}


@pytest.mark.parametrize("build", SPLIT.values(), ids=SPLIT)
def test_gradients_do_not_depend_on_the_micro_batch_size(tmp_path: Path, build: Build) -> None:
    """Trap 41. Responses of 1 to 5 tokens, so that micro-batches hold unequal numbers of them."""
    num_rows = 16 if build not in (ppo, STAGES["ppo-shared"]) else 8
    found = []
    for num_micro_batches in (1, 2, 4, 8):
        recorder, _ = train(build(update=update(micro_batch_size=num_rows // num_micro_batches)), tmp_path)
        assert recorder.num_steps == 1
        found.append(recorder.gradients)
    assert max(gradient.abs().max() for gradient in found[0].values()) > 1e-2
    for gradients in found[1:]:
        assert gradients.keys() == found[0].keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, found[0][name], rtol=0, atol=1e-6, msg=name)


@every_stage
def test_a_tiny_max_grad_norm_freezes_the_weights(tmp_path: Path, build: Build) -> None:
    """Trap 42."""
    frozen, free = (build(update=update(num_epochs=2, max_grad_norm=norm)) for norm in (1e-25, 1.0))
    before = {name: value.clone() for name, value in frozen.transformer.state_dict().items()}
    for stage in (frozen, free):
        recorder, _ = train(stage, tmp_path, 2)
    assert recorder.rollouts[-1]["update/grad_norm"] > 0.01
    for name, value in frozen.transformer.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(free.transformer.embedding.weight, before["embedding.weight"])


def test_lightning_s_own_clipping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"gradient_clip_val|gradient clipping"):
        train(ppo(), tmp_path, gradient_clip_val=1.0)


@every_stage
def test_two_runs_of_a_seed_are_equal_and_of_two_seeds_are_not(tmp_path: Path, build: Build) -> None:
    full = update(num_epochs=2, num_minibatches=2, max_grad_norm=1.0)
    one, same, other = (build(update=full) for _ in range(3))
    train(one, tmp_path, 2, seed=7)
    torch.rand(100)
    train(same, tmp_path, 2, seed=7)
    assert_same_weights(one, same)
    train(other, tmp_path, 2, seed=8)
    assert not torch.equal(one.transformer.embedding.weight, other.transformer.embedding.weight)


@every_stage
def test_global_step_counts_optimizer_steps(tmp_path: Path, build: Build) -> None:
    """Trap 43."""
    stage = build(update=update(num_epochs=3, num_minibatches=2))
    recorder, trainer = train(stage, tmp_path, 2, callbacks=[LearningRateLogger()], logger=MetricsCsv(str(tmp_path)))
    assert trainer.global_step == recorder.num_steps == 2 * 3 * 2
    rows = read_metrics(tmp_path / "metrics.csv")  # one a rollout, with what callbacks log in it
    assert all(row["lr/hidden"] for row in rows)
    assert [(int(row["step"]), float(row["rollout/number"])) for row in rows] == [(6, 1.0), (12, 2.0)]
    assert [rollout["update/minibatches"] for rollout in recorder.rollouts] == [6, 6]
    assert stage.num_rollouts == 2
    first = trainer.optimizers[0].state_dict()["state"]
    assert {int(state["step"]) for state in first.values()} == {12}


@pytest.mark.parametrize("limit", [1, 5, 6, 8])
def test_max_steps_is_exact(tmp_path: Path, limit: int) -> None:
    recorder, trainer = train(ppo(update=update(num_epochs=2, num_minibatches=3)), tmp_path, 4, max_steps=limit)
    assert trainer.global_step == recorder.num_steps == limit
    assert len(recorder.rollouts) == -(-limit // 6)


def test_a_rollout_is_left_when_the_policy_has_moved_too_far(tmp_path: Path) -> None:
    many = {"num_epochs": 10, "num_minibatches": 1}
    free, _ = train(ppo(update=update(**many)), tmp_path, 1)
    assert free.num_steps == 10
    stopped, trainer = train(ppo(update=update(**many, target_kl=1e-4)), tmp_path, 3)
    steps = [rollout["update/minibatches"] for rollout in stopped.rollouts]
    assert all(2 <= count < 10 for count in steps)  # the first step is always made, the last one was measured only
    assert stopped.num_steps == trainer.global_step == sum(steps) - 3
    # A limit in steps is reached by more rollouts then.
    longer, trainer = train(ppo(update=update(**many, target_kl=1e-4)), tmp_path, 12, max_steps=9)
    assert trainer.global_step == longer.num_steps == 9


def test_the_last_rollout_is_followed_by_a_validation_which_changes_nothing(tmp_path: Path) -> None:
    class Batches:
        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Iterator[PromptBatch]:
            return iter(PromptLoader(prompts(2), 0, 1))

    class Held(PromptSteps):
        def val_dataloader(self) -> Any:
            return Batches()

    validated: list[dict[str, float]] = []

    class Validations(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
            validated.append({name: float(value) for name, value in trainer.callback_metrics.items()})
            assert len(pl_module.validation_samples) == 16

    alone, watched = ppo(update=update(num_epochs=2)), ppo(update=update(num_epochs=2))
    train(alone, tmp_path, 3)
    torch.manual_seed(0)
    trainer = tiny_trainer(tmp_path, [Validations()], val_check_interval=2)
    trainer.fit(watched, Held(prompts(3), ragged_rl.STOP))
    assert_same_weights(alone, watched)
    assert len(validated) == 2
    assert validated[0]["val/reward"] != validated[1]["val/reward"]
    again = trainer.validate(watched, Held(prompts(3), ragged_rl.STOP), verbose=False)[0]
    assert again["val/reward"] == pytest.approx(validated[1]["val/reward"], abs=1e-6)
    assert {"val/kl/reference", "val/rollout/length", "val/rollout/finished_share", "val/reward/table"} <= again.keys()


@pytest.mark.parametrize(
    ("build", "start", "precision"),
    [
        (ppo, "random", "32-true"),
        (grpo, "random", "32-true"),
        (ppo, "folder", "32-true"),
        (grpo, "folder of its shape", "32-true"),
        (ppo, "folder of its shape", "bf16-true"),
        (ppo, "folder", "64-true"),
        (ppo, "folder", "bf16-mixed"),
        (STAGES["ppo-shared"], "random", "bf16-true"),
    ],
)
def test_at_first_the_policy_is_its_reference(tmp_path: Path, build: Build, start: str, precision: str) -> None:
    """Trap 45."""
    arguments = {} if start == "random" else {"init_from": weights(tmp_path / "base")}
    if start == "folder of its shape":
        arguments["transformer"] = None
    recorder, _ = train(build(**arguments), tmp_path, 2, precision=precision)
    first, second = recorder.rollouts
    assert first["kl/reference"] == 0.0
    assert second["kl/reference"] != 0.0


def test_the_reference_is_what_training_starts_from(tmp_path: Path) -> None:
    stage = ppo(init_from=weights(tmp_path / "base"), update=update(num_epochs=3))
    train(stage, tmp_path, 2)
    from lmstack.models import load_transformer

    reference = stage.collector.reference
    assert_same_weights(reference, load_transformer(tmp_path / "base"))
    assert not torch.equal(stage.transformer.embedding.weight, reference.embedding.weight)
    assert not any(name.startswith(("_collector", "reference")) for name in stage.state_dict())


@every_stage
def test_policy_and_reference_are_compiled_alike(tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """They must round alike, or the KL divergence begins above 0. The compiler itself is torch's to test."""
    compiled: list[Block] = []
    monkeypatch.setattr(Block, "compile", lambda block, **_: compiled.append(block))
    stage = build(compile_blocks=True)
    train(stage, tmp_path)
    reference = stage.collector.reference
    assert reference is not None
    assert {id(block) for block in (*stage.transformer.blocks, *reference.blocks)} <= {id(block) for block in compiled}


def test_more_minibatches_than_responses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"update\.num_minibatches=9 is more than the 8 responses"):
        train(ppo(update=update(num_minibatches=9)), tmp_path)


@pytest.mark.parametrize("name", ["num_epochs", "num_minibatches", "micro_batch_size", "max_grad_norm"])
def test_an_update_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"update\.{name}=0(\.0)?: must be above 0"):
        UpdateConfig(**{name: 0.0 if name == "max_grad_norm" else 0})


def test_no_option_truncates_what_is_sampled() -> None:
    """Trap 34."""
    assert not {"top_k", "top_p", "min_p", "min_new_tokens"} & {field.name for field in fields(SamplingConfig)}


def test_the_adaptive_coefficient_and_the_schedule_move_once_a_rollout(tmp_path: Path) -> None:
    stage = ppo(
        kl=AdaptiveKL(0.1, target=100.0, horizon=80),
        schedule=LinearSchedule(warmup=0),
        update=update(num_epochs=2, num_minibatches=2),
    )
    rates: list[float] = []

    class Rates(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    recorder, _ = train(stage, tmp_path, 4, callbacks=[Rates()])
    assert [rollout["kl/coef"] for rollout in recorder.rollouts] == pytest.approx([0.1 * 0.98**n for n in range(4)])
    assert stage.kl.coef == pytest.approx(0.1 * 0.98**4)
    assert [len(set(rates[i : i + 4])) for i in range(0, 16, 4)] == [1] * 4
    assert rates[::4] == pytest.approx([3e-3 * (1 - n / 4) for n in range(4)], rel=0.35)
    assert rates == sorted(rates, reverse=True)


def test_an_average_of_the_weights_is_kept_and_validated_with(tmp_path: Path) -> None:
    stage, average = ppo(update=update(num_epochs=2)), WeightAverage(decay=0.9)
    callbacks = [average, Checkpointing(every_n_steps=1)]
    train(stage, tmp_path, 3, callbacks=callbacks)
    name = "transformer.embedding.weight"
    initial, final = ppo().transformer.embedding.weight, stage.transformer.embedding.weight
    assert not torch.equal(average.average[name], final)
    assert not torch.equal(average.average[name], initial)
    assert (newest_valid_checkpoint(tmp_path) / "average.safetensors").is_file()


# ---- resume ---------------------------------------------------------------------------------------------------------


def long_run(build: Build, base: str, seed: int = 0) -> Any:
    """Everything that has state: statistics of rewards, an adaptive coefficient, a schedule, Adam's moments."""
    changes: dict[str, Any] = {}
    if build is grpo:
        changes["kl_placement"] = RewardKL()
    return build(
        seed,
        init_from=base,
        schedule=LinearSchedule(warmup=1),
        kl=AdaptiveKL(0.1, target=0.01, horizon=100),
        reward_shaping=RewardShaping(missing_eos_penalty=0.5, normalize=True, clip=2.0),
        update=update(num_epochs=2, num_minibatches=2, micro_batch_size=3, max_grad_norm=1.0),
        **changes,
    )


class KillInUpdate(L.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("build", "moment"),
    [
        (ppo, "rollout"),
        (grpo, "update"),
        pytest.param(ppo, "update", marks=pytest.mark.slow),
        pytest.param(grpo, "rollout", marks=pytest.mark.slow),
        pytest.param(STAGES["ppo-shared"], "update", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path: Path, build: Build, moment: str) -> None:
    base = weights(tmp_path / "base")
    whole, killed, resumed = (long_run(build, base, seed) for seed in (0, 0, 99))
    recorder, trainer = train(whole, tmp_path / "whole", 4)
    assert trainer.global_step == 16
    assert len({rollout["kl/coef"] for rollout in recorder.rollouts}) == 4
    saving = Checkpointing(every_n_steps=1, keep_last=9)
    killers: list[L.Callback] = [saving]
    if moment == "rollout":
        ragged_rl.FUSE.append(3)  # in the middle of the third rollout
    else:
        killers.insert(0, KillInUpdate(10))  # in the middle of the third rollout's update
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(killed, tmp_path / "parts", 4, callbacks=killers)
    ragged_rl.FUSE.clear()
    checkpoint = newest_valid_checkpoint(tmp_path / "parts")
    assert checkpoint is not None
    assert checkpoint.name == folder_name(8)
    train(resumed, tmp_path / "parts", 4, ckpt_path=checkpoint, callbacks=[saving], seed=55)
    assert_same_weights(resumed, whole)
    assert resumed.kl.coef == whole.kl.coef
    assert resumed.shaper.state_dict() == whole.shaper.state_dict()
    assert resumed.num_rollouts == 4
    assert [folder.name for folder in checkpoints_in(tmp_path / "parts")][-1] == folder_name(16)


def test_resuming_with_other_starting_weights_is_refused(tmp_path: Path) -> None:
    base, other = weights(tmp_path / "base"), weights(tmp_path / "other", seed=6)
    train(long_run(ppo, base), tmp_path, 2, callbacks=[Checkpointing(every_n_steps=1)])
    checkpoint = newest_valid_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"init_from={other!r}: these are not the weights")):
        train(long_run(ppo, other), tmp_path, 3, ckpt_path=checkpoint)
