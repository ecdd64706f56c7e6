"""The corruption watch in real tiny runs: it changes nothing, and finds a flipped bit and a wrong loss."""

import json
import logging
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

import ragged_rl
from lmstack.callbacks import Checkpointing, CorruptionWatch, PostMortem
from lmstack.callbacks.corruption_watch import SilentCorruptionError
from lmstack.parallel.local_sgd import LocalSGD
from tiny_guarded import run
from tiny_run import StepData, assert_equal, batch_of, random_rows, tiny_stage, tiny_trainer

STEPS = [[batch_of(random_rows(2, lambda _: 5, seed))] for seed in range(8)]


class RandomStates(L.Callback):
    """After each step."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.seen.append(torch.get_rng_state())


class Unsteady(L.Callback):
    """From a step on, every other loss that is computed for comparison is another one."""

    def __init__(self, step: int) -> None:
        self.step, self.calls = step, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        right = pl_module.loss_sums

        def loss_sums(batch: Any) -> Any:
            sums = right(batch)
            self.calls += not pl_module.training
            is_wrong = not pl_module.training and trainer.global_step >= self.step and self.calls % 2
            return sums._replace(objective=sums.objective * 1.001) if is_wrong else sums

        pl_module.loss_sums = loss_sums


def watched(folder: Path, *callbacks: L.Callback) -> None:
    saving = Checkpointing(every_n_steps=1, keep_last=99)
    tiny_trainer(folder, [*callbacks, saving]).fit(tiny_stage(), StepData(STEPS))


def test_a_watched_run_is_the_same_run_bit_for_bit(tmp_path: Path) -> None:
    states = [RandomStates(), RandomStates()]
    plain = run(tmp_path / "plain", None, steps=12, extra=[states[0]])
    assert_equal(run(tmp_path / "watched", None, steps=12, extra=[CorruptionWatch(2), states[1]]), plain)
    assert_equal(states[0].seen, states[1].seen)


def test_the_module_keeps_its_modes(tmp_path: Path) -> None:
    stage = tiny_stage()
    frozen = stage.transformer.blocks[0].eval()
    tiny_trainer(tmp_path, [CorruptionWatch(1)]).fit(stage, StepData(STEPS[:2]))
    assert not frozen.training
    assert stage.transformer.blocks[1].training


def test_a_device_that_computes_otherwise_the_second_time_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(SilentCorruptionError, match=r"found after step 6: the loss .* At step 4 there was none"):
        watched(tmp_path, CorruptionWatch(2), PostMortem(), Unsteady(5))
    found = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert found[-1] == "step-00000004"
    assert found[0] == "set-aside-step-00000005"  # saved after the last comparison that found nothing
    assert not any(name.endswith("step-00000006") for name in found)  # compared first, and never saved
    folder = tmp_path / "post_mortem" / "step-00000006-rank-0"
    facts = json.loads((folder / "facts.json").read_text())
    assert facts["suspects"] == [{"rank": 0, "host": socket.gethostname()}]
    batch = torch.load(folder / "batch.pt", weights_only=True)
    assert torch.equal(batch[0]["fields"]["input_ids"], STEPS[5][0].input_ids)


def test_with_policy_warn_the_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        watched(tmp_path, CorruptionWatch(2, policy="warn"), PostMortem(), Unsteady(5))
    said = [record.message for record in caplog.records if "Silent data corruption" in record.message]
    assert [text.partition(":")[0][-1] for text in said] == ["6", "8"]
    assert (tmp_path / "checkpoints" / "step-00000008").is_dir()
    assert (tmp_path / "post_mortem" / "step-00000006-rank-0" / "facts.json").is_file()


def test_a_single_process_says_what_it_cannot_find(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        watched(tmp_path, CorruptionWatch(4))
    assert "cannot find a constant error" in caplog.text


def test_two_ranks_notice_a_flipped_bit_and_a_wrong_loss(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "recipes" / "corruption_of_two_ranks.py"
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr[-3000:]
    here = socket.gethostname()
    # Watched or not, each rank ends with the same weights and random numbers.
    for rank in range(2):
        plain, watched = (torch.load(tmp_path / f"{name}-{rank}.pt") for name in ("plain", "watched"))
        assert_equal(watched, plain)
    assert f"on rank 1: rank 0 ({here}) or rank 1 ({here}) computed wrongly" in (tmp_path / "warned.txt").read_text()
    assert "differ from each other, first transformer.blocks.1.attention" in done.stderr
    for rank in range(2):
        facts = json.loads(
            (tmp_path / "flipped" / "post_mortem" / f"step-00000004-rank-{rank}" / "facts.json").read_text()
        )
        assert facts["suspects"] == [{"rank": 0, "host": here}, {"rank": 1, "host": here}]
    names = sorted(path.name for path in (tmp_path / "flipped" / "checkpoints").iterdir())
    assert names == ["set-aside-step-00000003", "step-00000001", "step-00000002"]


def test_a_strategy_without_copies_and_a_stage_without_steps_are_refused(tmp_path: Path) -> None:
    watch, trainer = CorruptionWatch(), tiny_trainer(tmp_path)
    trainer.strategy.__class__ = type("Sharded", (type(trainer.strategy),), {})
    with pytest.raises(ValueError, match=r"under Sharded no two processes .* ~callbacks\.corruption_watch"):
        watch.on_train_start(trainer, tiny_stage())
    trainer._accelerator_connector.strategy = LocalSGD(period=2, outer_lr=1.0, outer_momentum=0.0)
    with pytest.raises(ValueError, match=r"under LocalSGD no two"):
        watch.on_train_start(trainer, tiny_stage())
    with pytest.raises(ValueError, match=r"PPO takes several optimizer steps .* ~callbacks\.corruption_watch"):
        watch.on_train_start(tiny_trainer(tmp_path), ragged_rl.ppo())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, r"every_n_steps=0: must be at least 1"),
        ({"tolerance": -0.1}, r"tolerance=-0.1: must be at least 0"),
        ({"tolerance": 1.0}, r"tolerance=1.0: must be .* below 1"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CorruptionWatch(**options)
