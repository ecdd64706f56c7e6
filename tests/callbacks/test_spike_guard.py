"""The spike guard in real tiny runs: what is skipped leaves no trace, a rollback is exact, a resume changes nothing."""

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

import ragged_rl
from lmstack.callbacks import Checkpointing, SpikeGuard
from lmstack.callbacks.spike_guard import _Pending
from lmstack.callbacks.spike_policies import RollbackPolicy, SkipPolicy, StopPolicy
from lmstack.data.skipped_rows import SkippedRows
from lmstack.models.checkpoint_folder import checkpoints_in, newest_valid_checkpoint, step_of
from lmstack.optim.optimizers import AdamWConfig, MuonConfig
from lmstack.optim.schedules import ConstantSchedule
from lmstack.run_record import read_lines
from tiny_guarded import GuardedData, Spoil, run
from tiny_run import StepData, assert_equal, batch_of, tiny_stage, tiny_trainer

STRUCK = 14
SPOILT = range(60, 72)  # the rows of steps 15, 16 and 17, counted from 0
OPTIMIZERS = {"adamw": AdamWConfig(lr=1e-2), "muon": MuonConfig(lr=1e-2, adamw_lr=1e-2)}
CHANGES: dict[str, Callable[[torch.Tensor], Any]] = {
    "inf": lambda g: g.view(-1)[:1].fill_(math.inf),
    "minus inf": lambda g: g.view(-1)[-1:].fill_(-math.inf),
    "nan": lambda g: g.view(-1)[:1].fill_(math.nan),
    "1e6": lambda g: g.mul_(1e6),
}


def guard(policy: Any = None, **options: Any) -> SpikeGuard:
    return SpikeGuard(policy or SkipPolicy(), **({"threshold": 3.0, "window": 16, "min_history": 4} | options))


def rollback(**options: Any) -> SpikeGuard:
    return guard(RollbackPolicy(**({"max_strikes": 2, "margin_steps": 1} | options)))


class States(L.Callback):
    """All that an update could change, before each step."""

    def __init__(self) -> None:
        self.before: dict[int, Any] = {}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        average: Any = trainer.callbacks[0]
        state = [pl_module.state_dict(), trainer.optimizers[0].state_dict()["state"], average.average]
        self.before[trainer.global_step] = copy.deepcopy(state)


@pytest.mark.parametrize(
    ("change", "optimizer"),
    [("inf", "adamw"), ("minus inf", "muon"), ("nan", "adamw"), ("nan", "muon"), ("1e6", "adamw")],
)
def test_a_skipped_update_leaves_weights_moments_counters_and_average_bitwise_as_they_were(
    tmp_path: Path, change: str, optimizer: str
) -> None:
    states, spoil = States(), Spoil([STRUCK], CHANGES[change])
    result = run(tmp_path, guard(), optimizer=OPTIMIZERS[optimizer], extra=[states, spoil], steps=18)
    assert_equal(states.before[STRUCK + 1], states.before[STRUCK])
    with pytest.raises(AssertionError):  # the next step is made again
        assert_equal(states.before[STRUCK + 2], states.before[STRUCK + 1])
    assert [(line["action"], line["step"]) for line in result["decisions"]] == [("skip", STRUCK + 1)]
    assert all(tensor.isfinite().all() for tensor in result["weights"].values())
    assert result["step"] == result["schedule"]["last_epoch"] == 18


def test_without_the_guard_the_same_step_changes_weights_and_moments(tmp_path: Path) -> None:
    states = States()
    run(tmp_path, None, extra=[states, Spoil([STRUCK], CHANGES["nan"])], steps=18)
    for before, after in zip(states.before[STRUCK], states.before[STRUCK + 1], strict=True):
        with pytest.raises(AssertionError):
            assert_equal(before, after)


def test_a_guard_that_finds_nothing_changes_nothing(tmp_path: Path) -> None:
    guarded, plain = run(tmp_path / "a", guard(threshold=50.0)), run(tmp_path / "b", None)
    assert_equal({**guarded, "decisions": []}, plain)
    assert guarded["decisions"] == []


def test_nothing_finite_is_rejected_while_there_is_too_little_to_compare_with(tmp_path: Path) -> None:
    result = run(
        tmp_path, guard(min_history=12), extra=[Spoil([3], CHANGES["1e6"]), Spoil([5], CHANGES["nan"])], steps=9
    )
    assert [line["step"] for line in result["decisions"]] == [6]


def test_a_line_names_the_rows_and_the_numbers_of_a_skipped_step(tmp_path: Path) -> None:
    (line, *_) = run(tmp_path, guard(), data=GuardedData(SPOILT))["decisions"]
    assert (line["step"], line["rows"], line["strike"]) == (16, [60, 64], 1)
    assert line["origins"] == [{"row": row} for row in range(60, 64)]
    assert line["loss"] > 3.0
    assert line["loss_deviations"] > 3.0 > line["grad_norm_deviations"]


def test_rows_that_were_rolled_back_over_might_as_well_not_have_been_there(tmp_path: Path) -> None:
    """The oracle has no guard: its order of rows never had the window."""
    back = run(tmp_path / "back", rollback(), data=GuardedData(SPOILT))
    assert [line["action"] for line in back["decisions"]] == ["skip", "skip", "rollback"]
    line = back["decisions"][-1]
    assert (line["to_step"], line["rows"]) == (10, [56, 72])  # a step before the first strike to one after the last
    clean = run(tmp_path / "clean", None, data=GuardedData(missing=SkippedRows(((56, 72),))))
    assert_equal({**back, "decisions": []}, clean)
    assert [int(row["step"]) for row in back["metrics"]] == list(range(1, 25))


@pytest.mark.parametrize("every_n_steps", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_rollback_is_exact_also_with_validations_between(tmp_path: Path, every_n_steps: int) -> None:
    options: dict[str, Any] = {"limit_val_batches": 1, "val_check_interval": 5, "every_n_steps": every_n_steps}
    back = run(tmp_path / "back", rollback(), data=GuardedData(SPOILT), **options)
    begin = back["decisions"][-1]["rows"][0]
    clean = run(tmp_path / "clean", None, data=GuardedData(missing=SkippedRows(((begin, 72),))), **options)
    assert_equal({**back, "decisions": []}, clean)
    assert [int(row["step"]) for row in back["metrics"] if row["val/loss"]] == [5, 10, 15, 20, 24]


@pytest.mark.parametrize(
    ("killed", "every_n_steps"),
    [
        (16, 5),
        (18, 5),
        (16, 1),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(13, 5), (17, 5), (23, 5), (19, 1)]),
    ],
)
def test_a_run_that_is_killed_and_resumed_skips_and_goes_back_as_one_that_is_not(
    tmp_path: Path, killed: int, every_n_steps: int
) -> None:
    """Before the first strike, between the strikes, before and after the first checkpoint that follows the rollback."""
    whole = run(tmp_path / "whole", rollback(), data=GuardedData(SPOILT), every_n_steps=every_n_steps)
    parts = tmp_path / "parts"
    run(parts, rollback(), data=GuardedData(SPOILT), every_n_steps=every_n_steps, kill_after=killed)
    checkpoint = newest_valid_checkpoint(parts)
    resumed = run(parts, rollback(), data=GuardedData(SPOILT), every_n_steps=every_n_steps, resume=checkpoint)
    assert_equal(resumed, whole)


class SaveAndLeave(L.Callback):
    """A signal that arrives just when it has been decided, or is about to be, to go back."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 17:
            next(c for c in trainer.callbacks if isinstance(c, Checkpointing)).save(trainer)
            raise SystemExit


@pytest.mark.parametrize("is_first", [True, False], ids=["before the decision", "after it"])
def test_a_signal_between_decision_and_rollback_changes_nothing(tmp_path: Path, is_first: bool) -> None:
    whole = run(tmp_path / "whole", rollback(), data=GuardedData(SPOILT))
    parts, leave = tmp_path / "parts", SaveAndLeave()
    where: dict[str, Any] = {"first": [leave]} if is_first else {"extra": [leave]}
    run(parts, rollback(), data=GuardedData(SPOILT), kill_after=99, **where)
    checkpoint = newest_valid_checkpoint(parts)
    assert checkpoint is not None
    assert step_of(checkpoint) == 17
    assert_equal(run(parts, rollback(), data=GuardedData(SPOILT), resume=checkpoint), whole)


def test_skips_are_the_same_after_a_resume(tmp_path: Path) -> None:
    def spoilt(**options: Any) -> Any:
        return run(extra=[Spoil([9, 15], CHANGES["inf"]), Spoil([12, 17], CHANGES["1e6"])], every_n_steps=4, **options)

    whole = spoilt(folder=tmp_path / "whole", guard=guard())
    spoilt(folder=tmp_path / "parts", guard=guard(), kill_after=14)
    resumed = spoilt(folder=tmp_path / "parts", guard=guard(), resume=newest_valid_checkpoint(tmp_path / "parts"))
    assert_equal(resumed, whole)
    assert [line["step"] for line in whole["decisions"]] == [10, 13, 16, 18]


def test_no_checkpoint_of_the_steps_that_are_undone_is_left(tmp_path: Path) -> None:
    seen: list[list[int]] = []

    class Steps(L.Callback):
        def on_rollback(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append([step_of(folder) for folder in checkpoints_in(tmp_path)])

    run(tmp_path, rollback(), data=GuardedData(SPOILT), every_n_steps=2, extra=[Steps()])
    assert seen == [[2, 4, 6, 8, 10, 12, 14]]


def test_the_checkpoint_that_may_be_needed_is_kept_while_there_are_strikes(tmp_path: Path) -> None:
    one = rollback()
    assert not one.holds_checkpoints
    one._strikes = [3]
    assert one.holds_checkpoints
    late = rollback()  # as on a CUDA device, which is asked a step later
    for rejected in (0.0, 1.0):
        late._pending.append(_Pending(3, torch.tensor([9.0, 9.0, 9.0, 9.0, rejected]), None))
        assert late.holds_checkpoints == bool(rejected)
    other = guard()
    other._strikes = [3]
    assert not other.holds_checkpoints


def test_the_learning_rate_is_lowered_for_the_rest_of_the_run_and_after_a_resume(tmp_path: Path) -> None:
    class Rates(L.Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
            self.seen.append(optimizer.param_groups[0]["lr"] / lr_multiplier_at(trainer.global_step))

    def lr_multiplier_at(step: int) -> float:
        return plain.get(step, math.nan)

    plain: dict[int, float] = {}

    class Plain(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
            plain[trainer.global_step] = optimizer.param_groups[0]["lr"]

    run(tmp_path / "plain", None, extra=[Plain()])
    first, second = Rates(), Rates()
    run(tmp_path / "a", rollback(lr_factor=0.5), data=GuardedData(SPOILT), extra=[first], kill_after=22)
    checkpoint = newest_valid_checkpoint(tmp_path / "a")
    run(tmp_path / "a", rollback(lr_factor=0.5), data=GuardedData(SPOILT), extra=[second], resume=checkpoint)
    assert first.seen[1:17] == pytest.approx([1.0] * 16)
    assert first.seen[17:] == pytest.approx([0.5] * 5)
    assert second.seen == pytest.approx([0.5] * 9)


def test_rollbacks_in_a_row_leave_out_more_each_time_and_then_the_run_stops(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stops the run at step 1\d: 2 rollbacks in a row .*ckpt_path=last"):
        run(tmp_path, rollback(max_rollbacks=2), data=GuardedData(range(60, 999)))
    lines = [line for line in read_lines(tmp_path / "spikes.jsonl") if line["action"] != "skip"]
    assert [line["action"] for line in lines] == ["rollback", "rollback", "stop"]
    # The first window is gone, so row 72 comes at step 14; now two steps are left out on either side of the strikes.
    assert [line["rows"] for line in lines[:2]] == [[56, 72], [48, 88]]
    assert [line["in_a_row"] for line in lines[:2]] == [1, 2]


def test_without_a_checkpoint_to_go_back_to_the_run_stops_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint from before step 16"):
        run(tmp_path, rollback(), data=GuardedData(SPOILT), every_n_steps=100)


def test_a_run_that_is_to_stop_stops_at_the_first_strike_and_again_when_it_is_resumed(tmp_path: Path) -> None:
    for resume in (None, "last"):
        checkpoint = newest_valid_checkpoint(tmp_path) if resume else None
        with pytest.raises(ValueError, match=r"stops the run at step 16: 1 updates were skipped"):
            run(tmp_path, guard(StopPolicy()), data=GuardedData(SPOILT), resume=checkpoint)
        assert [line["action"] for line in read_lines(tmp_path / "spikes.jsonl")] == ["skip", "stop"]


def test_skipping_for_ever_is_not_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="5 updates were skipped"):
        run(tmp_path, guard(SkipPolicy(max_strikes=5)), extra=[Spoil(range(10, 99), CHANGES["nan"])])


def test_strikes_are_forgotten_after_calm_steps(tmp_path: Path) -> None:
    result = run(tmp_path, guard(StopPolicy(max_strikes=2)), extra=[Spoil([8, 17], CHANGES["nan"])])
    assert [line["strike"] for line in result["decisions"]] == [1, 1]


def test_going_back_needs_data_that_can_leave_rows_out(tmp_path: Path) -> None:
    data = StepData([[batch_of([[1, 2, 3]])]])
    with pytest.raises(ValueError, match=r"kind=rollback: this data cannot leave rows out"):
        tiny_trainer(tmp_path, [rollback(), Checkpointing()]).fit(tiny_stage(), data)
    with pytest.raises(ValueError, match=r"kind=rollback: the run saves no checkpoints to go back to"):
        tiny_trainer(tmp_path, [rollback()]).fit(tiny_stage(), data)


def test_several_steps_from_one_rollout_are_not_guarded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"PPO takes several optimizer steps from a rollout.*~callbacks.spike_guard"):
        ragged_rl.train(ragged_rl.ppo(), tmp_path, callbacks=[guard()])


def test_a_constant_batch_is_no_spike(tmp_path: Path) -> None:
    """With no noise at all, deviations are measured against a least spread."""
    one = SpikeGuard(SkipPolicy(), window=16, min_history=4)
    trainer = tiny_trainer(tmp_path, [one], max_steps=40, max_epochs=-1)
    trainer.fit(tiny_stage(schedule=ConstantSchedule()), StepData([[batch_of([[1, 2, 3, 4]])]] * 40))
    assert one.num_decisions == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SkipPolicy(max_strikes=0), r"max_strikes=0: must be at least 1"),
        (lambda: StopPolicy(max_strikes=0), r"max_strikes=0: must be at least 1"),
        (lambda: RollbackPolicy(max_rollbacks=0), r"max_rollbacks=0: must be at least 1"),
        (lambda: RollbackPolicy(margin_steps=-1), r"margin_steps=-1: must not be negative"),
        (lambda: RollbackPolicy(lr_factor=0.0), r"lr_factor=0.0: must be above 0"),
        (lambda: RollbackPolicy(lr_factor=1.5), r"lr_factor=1.5: must be above 0 and at most 1"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_two_ranks_decide_alike_also_when_only_one_sees_what_is_wrong(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "recipes" / "spike_guard_of_two_ranks.py"
    subprocess.run([sys.executable, script, tmp_path], check=True, timeout=300)
    lines = read_lines(tmp_path / "spikes.jsonl")
    assert [(line["action"], line["step"]) for line in lines] == [
        ("skip", 7),
        ("skip", 31),
        ("skip", 32),
        ("rollback", 32),
    ]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert_equal(first, second)
