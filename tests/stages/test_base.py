"""The optimizer step of every stage: one loss, whatever the split."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lmstack.data.batch import IGNORE_INDEX
from lmstack.models.activation_checkpointing import BudgetCheckpointing
from lmstack.optim.schedules import LinearSchedule
from lmstack.stages import LanguageModule
from tiny_run import StepData, batch_of, random_rows, tiny_config, tiny_stage, tiny_trainer

ROWS = random_rows(6, lambda i: [9, 3, 12, 1, 7, 5][i])


class Gradients(L.Callback):
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self.values = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}


def gradients_of(folder: Path, split: list[list[int]], **arguments: Any) -> dict[str, torch.Tensor]:
    gradients = Gradients()
    step = [batch_of([ROWS[i] for i in rows]) if rows else fully_masked() for rows in split]
    tiny_trainer(folder, [gradients], precision="64-true").fit(tiny_stage(**arguments), StepData([step]))
    return gradients.values


def fully_masked() -> Any:
    batch = batch_of(ROWS[:1])
    batch.labels.fill_(IGNORE_INDEX)
    return batch


@pytest.mark.parametrize(
    "split",
    [
        [[0, 1, 2], [3, 4, 5]],
        [[0], [1], [2], [3], [4], [5]],
        [[5, 4, 3, 2, 1], [0]],
        [[0, 1], [], [2, 3, 4], [5]],
        [[], [0, 1, 2, 3, 4, 5]],
        [[0, 1, 2, 3, 4, 5], []],
    ],
    ids=str,
)
@pytest.mark.parametrize("z_loss_coef", [0.0, 0.1])
def test_gradients_do_not_depend_on_how_a_step_is_split_into_micro_batches(
    tmp_path: Path, split: list[list[int]], z_loss_coef: float
) -> None:
    whole = gradients_of(tmp_path, [[0, 1, 2, 3, 4, 5]], z_loss_coef=z_loss_coef)
    parts = gradients_of(tmp_path, split, z_loss_coef=z_loss_coef)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=0, atol=1e-12, msg=name)


def test_the_step_s_loss_is_the_mean_over_all_its_tokens(tmp_path: Path) -> None:
    """An independent formula: log-softmax of the logits of each row alone, averaged over every token."""
    stage = tiny_stage().double()
    losses = []
    for row in ROWS:
        ids = torch.tensor(row)
        log_probs = stage.transformer.logits(stage.transformer(ids[None, :-1])).double().log_softmax(-1)[0]
        losses += [-log_probs[t, row[t + 1]] for t in range(len(row) - 1)]
    torch.stack(losses).mean().backward()
    expected = {name: parameter.grad for name, parameter in stage.named_parameters()}
    for name, gradient in gradients_of(tmp_path, [[0, 1, 2], [3], [4, 5]]).items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-6, msg=name)


def test_validation_reports_sums_over_sums(tmp_path: Path) -> None:
    stage = tiny_stage()
    batches = [batch_of(ROWS[:3]), batch_of(ROWS[3:4]), batch_of(ROWS[4:])]
    trainer = tiny_trainer(tmp_path)
    together = trainer.validate(stage, StepData([], [batch_of(ROWS)]), verbose=False)[0]
    apart = trainer.validate(stage, StepData([], batches), verbose=False)[0]
    assert apart["val/loss"] == pytest.approx(together["val/loss"], abs=1e-6)
    # Here a label stands for one byte, so bits per byte are bits per token.
    assert apart["val/bits_per_byte"] == pytest.approx(apart["val/loss"] / 0.6931471805599453, rel=1e-6)
    assert apart["val/perplexity"] == pytest.approx(2.718281828459045 ** apart["val/loss"], rel=1e-5)
    mean_of_means = sum(trainer.validate(stage, StepData([], [b]), verbose=False)[0]["val/loss"] for b in batches) / 3
    assert abs(mean_of_means - apart["val/loss"]) > 1e-3


def test_clipping_takes_effect(tmp_path: Path) -> None:
    stage, before = tiny_stage(), tiny_stage()
    tiny_trainer(tmp_path, gradient_clip_val=1e-20).fit(stage, StepData([[batch_of(ROWS)]]))
    for (name, new), old in zip(stage.named_parameters(), before.parameters()):
        decay = 1 - 5e-3 * 0.1 if new.ndim > 1 else 1.0
        torch.testing.assert_close(new, old * decay, rtol=2e-2, atol=1e-6, msg=name)


def test_the_learning_rate_moves_once_an_optimizer_step(tmp_path: Path) -> None:
    rates: list[float] = []

    class Rates(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    steps = [[batch_of(ROWS[i : i + 1]) for i in range(4)] for _ in range(6)]
    tiny_trainer(tmp_path, [Rates()]).fit(tiny_stage(schedule=LinearSchedule(warmup=2)), StepData(steps))
    assert len(rates) == 6
    assert max(rates) == pytest.approx(1e-2)
    assert rates[0] < rates[1]
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_max_steps_is_exact(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, max_steps=3)
    trainer.fit(tiny_stage(), StepData([[batch_of(ROWS), batch_of(ROWS)] for _ in range(8)]))
    assert trainer.global_step == 3


def test_the_last_step_is_followed_by_a_validation_whatever_the_interval(tmp_path: Path) -> None:
    validated: list[int] = []

    class Validations(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            validated.append(trainer.global_step)

    data = StepData([[batch_of(ROWS)]] * 5, [batch_of(ROWS)])
    tiny_trainer(tmp_path, [Validations()], val_check_interval=2).fit(tiny_stage(), data)
    tiny_trainer(tmp_path, [Validations()], val_check_interval=2, max_steps=3).fit(tiny_stage(), data)
    assert validated == [2, 4, 5, 2, 3]


def test_dropout_differs_by_rank_and_step_and_repeats_after_a_restart(tmp_path: Path) -> None:
    def draw(rank: int, step: int) -> float:
        stage = tiny_stage()
        stage.base_seed = 5
        stage._trainer = type("FakeTrainer", (), {"global_rank": rank, "strategy": None})()
        LanguageModule._seed_step(stage, step)
        return torch.rand(()).item()

    draws = {(rank, step): draw(rank, step) for rank in range(3) for step in range(3)}
    assert len(set(draws.values())) == 9
    assert draw(2, 1) == draws[2, 1]


def test_evaluation_changes_nothing_about_training(tmp_path: Path) -> None:
    config = tiny_config(dropout=0.2)
    steps = [[batch_of(ROWS)] for _ in range(6)]
    with_validation = tiny_stage(config=config)
    tiny_trainer(tmp_path, val_check_interval=2).fit(with_validation, StepData(steps, [batch_of(ROWS)]))
    without = tiny_stage(config=config)
    tiny_trainer(tmp_path, limit_val_batches=0).fit(without, StepData(steps))
    for new, old in zip(with_validation.parameters(), without.parameters()):
        assert torch.equal(new, old)


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_give_the_gradients_and_validation_loss_of_one(tmp_path: Path, world_size: int) -> None:
    script = Path(__file__).parents[1] / "recipes" / "gradients_of_one_step.py"
    for world in (1, world_size):
        subprocess.run([sys.executable, script, str(world), tmp_path / f"{world}.pt"], check=True, timeout=300)
    one, several = torch.load(tmp_path / "1.pt"), torch.load(tmp_path / f"{world_size}.pt")
    assert several["val/loss"] == pytest.approx(one["val/loss"], abs=1e-6)
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(several["gradients"][name], gradient, rtol=0, atol=1e-12, msg=name)


def test_blocks_can_be_compiled_without_changing_names(tmp_path: Path) -> None:
    stage = tiny_stage(compile_blocks=True)
    names = list(stage.state_dict())
    for block in stage.transformer.blocks:
        block.compile = lambda **_: None  # the compiler itself is torch's to test
    tiny_trainer(tmp_path).fit(stage, StepData([[batch_of(ROWS)]]))
    assert list(stage.state_dict()) == names


def test_a_scaler_of_gradients_is_refused(tmp_path: Path) -> None:
    """Lightning unscales after clipping where the optimizer is fused."""
    from lightning.pytorch.plugins import MixedPrecision

    plugin = MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match=r"trainer.precision=16-mixed: .*Use bf16-mixed"):
        tiny_trainer(tmp_path, plugins=[plugin]).fit(tiny_stage(), StepData([[batch_of(ROWS)]]))


def test_a_budget_of_activations_needs_the_compiler_and_no_dropout() -> None:
    budget = BudgetCheckpointing(0.5)
    with pytest.raises(ValueError, match=r"the compiler that chooses. Set model.compile_blocks=true"):
        tiny_stage(activation_checkpointing=budget)
    with pytest.raises(ValueError, match=r"kind=budget with dropout=0.1: .*wrong gradients"):
        tiny_stage(config=tiny_config(dropout=0.1), activation_checkpointing=budget, compile_blocks=True)
    assert (
        tiny_stage(activation_checkpointing=budget, compile_blocks=True).transformer.activation_checkpointing == budget
    )
