"""Changes of a run that goes on are made at a step's end, recorded, and made again at the same step after a resume."""

import json
import os
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from asking import Ask, same
from lmstack.callbacks import Checkpointing, Control, RunRecorder, control
from lmstack.callbacks.rollback import restart_loader, restore_run
from lmstack.control_requests import send_request
from lmstack.models.checkpoint import read_config
from lmstack.models.checkpoint_folder import folder_name, newest_valid_checkpoint
from lmstack.optim.optimizers import AdamWConfig, MuonConfig
from lmstack.run_record import read_changes
from tiny_run import StepData, batch_of, random_rows, tiny_config, tiny_stage, tiny_trainer

STEPS = 8
CHANGES = {
    2: {"model.optimizer.lr": "0.003"},
    4: {"model.optimizer.weight_decay": "0.7", "trainer.gradient_clip_val": "0.05"},
    5: {"model.transformer.dropout": "0.4", "trainer.gradient_clip_val": "null"},
    6: {"model.optimizer.lr": "0.0005"},
}


@pytest.fixture(autouse=True)
def _look_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SECONDS_BETWEEN_LOOKS", 0.0)


def data() -> StepData:
    rows = random_rows(STEPS * 2, lambda i: 3 + i % 9)
    return StepData([[batch_of(rows[2 * i : 2 * i + 2])] for i in range(STEPS)])


def run(
    folder: Path, ask: Ask, *, resume: Path | None = None, optimizer: Any = None, every: int = 1, **options: Any
) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    stage = tiny_stage(
        seed=0 if resume is None else 9, config=tiny_config(dropout=0.1), optimizer=optimizer or AdamWConfig(lr=1e-2)
    )
    callbacks = [ask, RunRecorder(), Control(), Checkpointing(every_n_steps=every, keep_last=99)]
    trainer = tiny_trainer(folder, callbacks, **({"gradient_clip_val": 1.0} | options))
    try:
        trainer.fit(stage, data(), ckpt_path=resume)
    except (KeyboardInterrupt, SystemExit):
        assert ask.die_after is not None
    return {name: value.clone() for name, value in stage.state_dict().items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor], Ask]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control, "SECONDS_BETWEEN_LOOKS", 0.0)
        folder, ask = tmp_path_factory.mktemp("whole"), Ask(CHANGES)
        return folder, run(folder, ask), ask


def test_changes_are_answered_and_recorded_with_their_step(whole: Any) -> None:
    folder, _, ask = whole
    assert ask.answers()[0] == "after step 2: model.optimizer.lr 0.01 -> 0.003"
    starts = json.loads((folder / "run.json").read_text())
    changes = [(c["step"], c["key"], c["from"], c["to"]) for c in starts[0]["changes"]]
    assert changes == [
        (2, "model.optimizer.lr", 0.01, 0.003),
        (4, "model.optimizer.weight_decay", 0.1, 0.7),
        (4, "trainer.gradient_clip_val", 1.0, 0.05),
        (5, "model.transformer.dropout", 0.1, 0.4),
        (5, "trainer.gradient_clip_val", 0.05, None),
        (6, "model.optimizer.lr", 0.003, 0.0005),
    ]


@pytest.mark.parametrize("key", sorted({key for changes in CHANGES.values() for key in changes}))
def test_each_change_changes_the_steps_after_it_and_none_before(tmp_path: Path, whole: Any, key: str) -> None:
    """Without it, the checkpoint of its step has the same weights, and the next one has not."""
    step = next(step for step, changes in CHANGES.items() if key in changes)
    without = {s: {k: v for k, v in c.items() if k != key} for s, c in CHANGES.items()}
    run(tmp_path, Ask({s: c for s, c in without.items() if c}, die_after=step + 1))
    for later, is_same in ((step, True), (step + 1, False)):
        name = f"checkpoints/{folder_name(later)}/model.safetensors"
        assert ((tmp_path / name).read_bytes() == (whole[0] / name).read_bytes()) is is_same


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("die_after", [3, 5, 7])
def test_a_resumed_run_makes_them_again_at_the_same_step(
    tmp_path: Path, whole: Any, die_after: int, every: int
) -> None:
    run(tmp_path, Ask(CHANGES, die_after), every=every)
    left = {step: changes for step, changes in CHANGES.items() if step > die_after}
    end = run(tmp_path, Ask(left), resume=newest_valid_checkpoint(tmp_path), every=every)
    assert same(end, whole[1])
    keys = ("step", "key", "to")
    assert [[c[k] for k in keys] for c in read_changes(tmp_path)] == [
        [c[k] for k in keys] for c in read_changes(whole[0])
    ]


def test_muon_and_the_rest_have_rates_of_their_own(tmp_path: Path) -> None:
    ask = Ask({2: {"model.optimizer.lr": "0.004"}, 3: {"model.optimizer.adamw_lr": "0.0001"}})
    run(tmp_path, ask, optimizer=MuonConfig(lr=0.02, adamw_lr=0.01))
    plain = Ask({})
    run(tmp_path / "plain", plain, optimizer=MuonConfig(lr=0.02, adamw_lr=0.01))
    for step, rates in ask.rates.items():
        muon, *adamw = (ours / theirs for ours, theirs in zip(rates, plain.rates[step]))
        assert muon == pytest.approx(0.2 if step >= 2 else 1.0)
        assert adamw == pytest.approx([0.01 if step >= 3 else 1.0] * len(adamw))


def test_what_is_typed_anew_on_resume_holds_and_what_is_not_does_not(tmp_path: Path) -> None:
    """Unchanged words keep the change of the run; other words go before it, also where it is still to come."""
    run(tmp_path, Ask({2: {"model.optimizer.lr": "0.003"}, 4: {"model.optimizer.lr": "0.001"}}, 6))
    resume = tmp_path / "checkpoints" / folder_name(3)
    kept, typed = Ask({}), Ask({})
    run(tmp_path, kept, resume=resume)
    assert kept.rates[3][0] / kept.rates[4][0] > 2  # 0.003, then 0.001
    run(tmp_path, typed, resume=resume, optimizer=AdamWConfig(lr=0.002))
    assert typed.rates[3][0] == pytest.approx(kept.rates[3][0] * 2 / 3)
    assert typed.rates[4][0] == pytest.approx(kept.rates[4][0] * 2)
    again = Ask({})
    run(tmp_path, again, resume=tmp_path / "checkpoints" / folder_name(4), optimizer=AdamWConfig(lr=0.002))
    assert [again.rates[s] for s in (4, 5)] == [typed.rates[s] for s in (4, 5)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"data.seed": "3"},
            r"refused: data.seed cannot be changed .* These can: model.optimizer.kind, model.optimizer.lr, ",
        ),
        ({"model.optimizer.lr": "0"}, r"refused: model.optimizer.lr=0: must be above 0"),
        ({"model.transformer.dropout": "1"}, r"refused: model.transformer.dropout=1: must be at least 0 and below 1"),
        ({"model.optimizer.lr": "nan"}, r"refused: model.optimizer.lr=nan: must be above 0"),
        ({"trainer.gradient_clip_val": "x"}, r"refused: .*expected a number or null"),
        ({"model.optimizer.weight_decay": "0.5", "model.optimizer.lr": "-1"}, r"refused: "),
        ({"model.optimizer": "3"}, r"refused: model.optimizer=3: name what is below it, as model.optimizer.kind=muon"),
        ({"data.weights": "3"}, r"refused: data.weights=3: name what is below it, as data.weights.<source>=1"),
        ({"model.optimizer.kind": "[1]"}, r"refused: model.optimizer.kind=\[1\]: must be one of adamw, muon"),
        ({"model.optimizer.lr": 3}, r"refused: unknown command 'set', or not all that belongs to it"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_of_it_is_done(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    ask, plain = Ask({2: changes}), Ask({})
    ends = run(tmp_path / "asked", ask, max_steps=3), run(tmp_path / "plain", plain, max_steps=3)
    assert same(*ends)
    (answer,) = ask.answers()
    assert re.match(said, answer or ""), answer
    assert read_changes(tmp_path / "asked") == []


@pytest.mark.parametrize("forged", ["writable", "foreign", "link"])
def test_a_request_that_may_be_another_user_s_is_refused(
    tmp_path: Path, forged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forge(Ask):
        def on_train_batch_start(self, trainer: L.Trainer, *rest: Any) -> None:
            super().on_train_batch_start(trainer, *rest)
            for path in self.requests:
                if forged == "writable" and path.exists():
                    path.chmod(0o666)
                if forged == "link" and path.exists():
                    path.rename(tmp_path / "elsewhere")
                    path.symlink_to(tmp_path / "elsewhere")

    if forged == "foreign":
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        monkeypatch.setattr("lmstack.control_requests._TRUSTED", ())
    ask, plain = Forge({2: {"model.optimizer.lr": "0.5"}}), Ask({})
    assert same(run(tmp_path / "asked", ask, max_steps=3), run(tmp_path / "plain", plain, max_steps=3))
    assert ask.answers()[0].startswith("refused: ")


class Send(Ask):
    """Sends one request of any kind."""

    def __init__(self, after: int, **request: Any) -> None:
        super().__init__({}, die_after=-1)
        self.after, self.request = after, request

    def on_train_batch_start(self, trainer: L.Trainer, *rest: Any) -> None:
        super().on_train_batch_start(trainer, *rest)
        if trainer.global_step + 1 == self.after:
            self.requests.append(send_request(Path(trainer.default_root_dir), self.request))


def test_save_and_stop_write_the_step(tmp_path: Path) -> None:
    run(tmp_path / "save", Send(3, command="save"), every=100)
    names = [path.name for path in sorted((tmp_path / "save" / "checkpoints").iterdir())]
    assert names == [folder_name(3), folder_name(STEPS)]
    run(tmp_path / "stop", Send(3, command="stop"), every=100)
    assert newest_valid_checkpoint(tmp_path / "stop").name == folder_name(3)


def test_rollback_makes_last_mean_an_earlier_step_and_undoes_later_changes(tmp_path: Path) -> None:
    class Both(Send):
        def __init__(self) -> None:
            super().__init__(5, command="rollback", step=2)
            self.changes = {4: {"model.optimizer.lr": "0.5"}}

    run(tmp_path / "back", Both())
    assert newest_valid_checkpoint(tmp_path / "back").name == folder_name(2)
    assert read_changes(tmp_path / "back") == []
    end = run(tmp_path / "back", Ask({}), resume=newest_valid_checkpoint(tmp_path / "back"))
    assert same(end, run(tmp_path / "plain", Ask({})))


def test_a_rollback_to_no_checkpoint_is_refused(tmp_path: Path) -> None:
    ask = Send(3, command="rollback", step=99)
    run(tmp_path, ask)
    assert "step-00000099" in ask.answers()[0]
    assert newest_valid_checkpoint(tmp_path).name == folder_name(STEPS)


SWAPS = {
    3: {"model.optimizer.kind": "muon", "model.optimizer.lr": "0.02", "model.optimizer.adamw_lr": "0.01"},
    4: {"model.transformer.feed_forward.activation": "relu2"},
    6: {"model.optimizer.adamw_lr": "0.001", "model.optimizer.lr": "0.002"},
}


@pytest.fixture(scope="module")
def swapped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor], Ask]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control, "SECONDS_BETWEEN_LOOKS", 0.0)
        ask = Ask(SWAPS)
        folder = tmp_path_factory.mktemp("swapped")
        return folder, run(folder, ask), ask


def test_another_optimizer_starts_without_state_at_the_schedule_s_place(tmp_path: Path, swapped: Any) -> None:
    folder, _, ask = swapped
    plain = Ask({})
    run(tmp_path, plain, optimizer=MuonConfig(lr=0.02, adamw_lr=0.01))
    for step in range(3, 6):
        assert ask.rates[step] == pytest.approx(plain.rates[step])
    assert ask.rates[6] == pytest.approx([rate / 10 for rate in plain.rates[6]])
    state = torch.load(folder / "checkpoints" / folder_name(STEPS) / "training_state.pt", weights_only=True)
    counters = {float(s["step"]) for s in state["optimizer_states"][0]["state"].values() if "step" in s}
    assert counters == {STEPS - 3.0}
    assert ask.answers()[0] == "after step 3: model.optimizer adamw -> muon"


def test_another_activation_is_in_the_weights_config(swapped: Any) -> None:
    for step, name in ((3, "silu"), (4, "relu2"), (STEPS, "relu2")):
        config = read_config(swapped[0] / "checkpoints" / folder_name(step))
        assert config.feed_forward.activation == name


@pytest.mark.parametrize("die_after", [2, 3, 5, 7])
def test_a_resumed_run_has_the_optimizer_and_activation_of_its_step(
    tmp_path: Path, swapped: Any, die_after: int
) -> None:
    run(tmp_path, Ask(SWAPS, die_after), every=3)
    left = {step: changes for step, changes in SWAPS.items() if step > die_after}
    end = run(tmp_path, Ask(left), resume=newest_valid_checkpoint(tmp_path), every=3)
    assert same(end, swapped[1])


class GoBack(Ask):
    """Puts the run back to a checkpoint while it goes on, once."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == 5 and not self.die_after:
            self.die_after = 99
            pl_module.after_step = lambda: self._back(trainer)  # type: ignore[assignment]

    def _back(self, trainer: L.Trainer) -> None:
        restore_run(trainer, Path(trainer.default_root_dir) / "checkpoints" / folder_name(2))
        restart_loader(trainer)


def test_a_rollback_past_a_swap_makes_it_again(tmp_path: Path, swapped: Any) -> None:
    assert same(run(tmp_path, GoBack(SWAPS)), swapped[1])


def test_another_kind_typed_on_resume_is_a_swap_and_other_numbers_of_the_same_kind_hold(tmp_path: Path) -> None:
    run(tmp_path, Ask({}, die_after=4))
    resume = newest_valid_checkpoint(tmp_path)
    asked = Ask({4: SWAPS[3]})
    by_request = run(tmp_path / "asked", asked)
    by_config = run(tmp_path, Ask({}), resume=resume, optimizer=MuonConfig(lr=0.02, adamw_lr=0.01))
    assert same(by_request, by_config)
    other = run(tmp_path, Ask({}), resume=resume, optimizer=AdamWConfig(lr=1e-2, betas=(0.5, 0.6)))
    assert not same(other, run(tmp_path, Ask({}), resume=resume))
    with pytest.raises(ValueError, match=r"decay_embeddings=True, but the checkpoint was trained with False"):
        run(tmp_path, Ask({}), resume=resume, optimizer=AdamWConfig(lr=1e-2, decay_embeddings=True))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.optimizer.kind": "sgd"}, "refused: model.optimizer.kind=sgd: must be one of adamw, muon"),
        (
            {"model.optimizer.kind": "muon", "model.optimizer.lr": "0.1"},
            "refused: model.optimizer.adamw_lr is not given",
        ),
        (
            {"model.optimizer.kind": "muon", "model.optimizer.rate": "1"},
            "refused: model.optimizer.rate is no field of ",
        ),
        ({**SWAPS[3], "model.optimizer.momentum": "1.5"}, "refused: optimizer.momentum=1.5: must be in"),
        ({**SWAPS[3], "model.optimizer.lr": "fast"}, "refused: model.optimizer: "),
        ({"model.optimizer.kind": "adamw", "model.optimizer.lr": "0.1"}, "refused: the optimizer is adamw already"),
        ({"model.transformer.feed_forward.activation": "tanh"}, "refused: .*activation=tanh: must be one of silu, "),
    ],
)
def test_a_swap_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    ask = Ask({2: changes})
    run(tmp_path, ask, max_steps=3)
    assert re.match(said, ask.answers()[0] or ""), ask.answers()
    assert read_changes(tmp_path) == []
