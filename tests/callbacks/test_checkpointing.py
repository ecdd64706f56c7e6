"""No failure of the disk, and no damage, costs the previous checkpoint."""

import errno
import logging
import os
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lmstack.callbacks import Checkpointing, FolderCheckpointIO, WeightAverage, checkpoint_io
from lmstack.callbacks.checkpointing import Leave
from lmstack.models import checkpoint_folder
from lmstack.models.checkpoint_folder import checkpoints_in, folder_name, newest_valid_checkpoint
from tiny_run import StepData, batch_of, random_rows, tiny_stage, tiny_trainer

STEPS = 6


def data() -> StepData:
    rows = random_rows(STEPS * 2, lambda i: 3 + i % 9)
    steps = [[batch_of(rows[2 * i : 2 * i + 2])] for i in range(STEPS)]
    return StepData(steps, [batch_of(random_rows(3, lambda i: 5, seed=1))])


def run(folder: Path, *callbacks: L.Callback, resume: Path | None = None, **options: Any) -> L.Trainer:
    trainer = tiny_trainer(folder, list(callbacks), **options)
    trainer.fit(tiny_stage(), data(), ckpt_path=resume)
    return trainer


FAILING = {
    "the folder": (Path, "mkdir"),
    "the weights": (checkpoint_io, "save_weights"),
    "the state": (torch, "save"),
    "the sync": (checkpoint_folder, "_sync"),
    "the hash": (checkpoint_folder, "_digest"),
    "the rename": (checkpoint_folder, "_swap"),
}


@pytest.mark.parametrize(("where", "code"), [("the folder", errno.EROFS), *((w, errno.ENOSPC) for w in FAILING)])
def test_a_write_that_fails_anywhere_keeps_the_previous_checkpoint(
    tmp_path: Path, where: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, Checkpointing(every_n_steps=2, keep_last=1), max_steps=2, max_epochs=-1)
    before = newest_valid_checkpoint(tmp_path)
    owner, name = FAILING[where]

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(OSError, match=os.strerror(code)):
            run(tmp_path, Checkpointing(every_n_steps=2, keep_last=1), resume=before)
    assert newest_valid_checkpoint(tmp_path) == before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [folder_name(2)]
    run(tmp_path, Checkpointing(every_n_steps=2, keep_last=1), resume=before)
    assert newest_valid_checkpoint(tmp_path).name == folder_name(STEPS)


def test_a_rename_that_fails_puts_the_replaced_checkpoint_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rename = tmp_path / "checkpoints" / folder_name(1), Path.rename

    def write(content: str) -> None:
        with checkpoint_folder.atomic_folder(path, {}) as folder:
            (folder / "weights").write_text(content)

    def fail_at_last(self: Path, target: Path) -> Path:
        if self.name == f".partial-{path.name}":
            raise OSError(errno.EIO, "I/O error")
        return rename(self, target)

    write("first")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail_at_last)
        with pytest.raises(OSError, match="I/O error"):
            write("second")
    assert newest_valid_checkpoint(tmp_path) == path
    assert (path / "weights").read_text() == "first"
    # Killed between the two renames: the next start puts it back.
    path.rename(path.with_name(f".partial-replaced-{path.name}"))
    checkpoint_folder.remove_partial(tmp_path)
    assert (path / "weights").read_text() == "first"


def test_a_background_write_that_fails_is_raised_and_the_previous_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FolderCheckpointIO.write

    def fail(self: Any, checkpoint: dict[str, Any], path: Path) -> None:
        if checkpoint["global_step"] == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, checkpoint, path)

    monkeypatch.setattr(FolderCheckpointIO, "write", fail)
    with pytest.raises(OSError, match="No space"):
        run(tmp_path, Checkpointing(every_n_steps=2, keep_last=1, asynchronous=True))
    assert newest_valid_checkpoint(tmp_path).name == folder_name(2)


def test_later_checkpoints_are_set_aside_and_push_nothing_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The newest is damaged: the run goes on from the one before, which must not count as the older of two."""
    run(tmp_path, Checkpointing(every_n_steps=1, keep_last=2))
    newest, before = folder_name(STEPS), folder_name(STEPS - 1)
    (tmp_path / "checkpoints" / newest / "manifest.json").unlink()
    seen: list[list[str]] = []

    class Look(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            seen.append([folder.name for folder in checkpoints_in(tmp_path)])

    with caplog.at_level(logging.WARNING, logger="lmstack"):
        run(tmp_path, Look(), Checkpointing(keep_last=1), resume=tmp_path / "checkpoints" / before)
    assert seen == [[before]]
    assert f"set-aside-{newest}" in caplog.text
    assert [folder.name for folder in checkpoints_in(tmp_path)] == [newest]
    assert (tmp_path / "checkpoints" / f"set-aside-{newest}").is_dir()


class LeaveAfter(L.Callback):
    """Asks before every other callback has had its turn, as a signal does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            next(c for c in trainer.callbacks if isinstance(c, Checkpointing)).request(Leave("test", 75))


@pytest.mark.parametrize(("step", "asynchronous"), [(3, False), (4, False), (4, True)])
def test_what_is_saved_on_request_is_what_a_regular_save_is(tmp_path: Path, step: int, asynchronous: bool) -> None:
    """The average of this step included, and the validation that follows every second one."""
    regular, asked = tmp_path / "regular", tmp_path / "asked"
    run(regular, Checkpointing(every_n_steps=1, keep_last=99), WeightAverage(0.5), val_check_interval=2)
    with pytest.raises(SystemExit, match="75"):
        run(
            asked,
            LeaveAfter(step),
            Checkpointing(keep_last=99, asynchronous=asynchronous),
            WeightAverage(0.5),
            val_check_interval=2,
        )
    ours, theirs = newest_valid_checkpoint(asked), regular / "checkpoints" / folder_name(step)
    assert ours.name == theirs.name
    for name in ("model.safetensors", "average.safetensors"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    states = [torch.load(folder / "training_state.pt") for folder in (ours, theirs)]
    assert states[0]["callbacks"]["Checkpointing"] == states[1]["callbacks"]["Checkpointing"]


def test_copies_for_background_writing_are_apart_and_use_their_memory_again() -> None:
    weight = torch.arange(6.0).view(2, 3)
    state = {"a": {"w": weight, "step": 3}, "b": [torch.ones(2, dtype=torch.int64), weight.T]}
    copies = checkpoint_io._HostCopies()
    first = copies.of(state)
    address = first["a"]["w"].data_ptr()
    weight.mul_(2)
    assert first["a"] == {"w": first["a"]["w"], "step": 3}
    assert torch.equal(first["a"]["w"], torch.arange(6.0).view(2, 3))
    second = copies.of(state | {"b": [torch.ones(5), weight.T]})
    assert second["a"]["w"].data_ptr() == address
    assert torch.equal(second["a"]["w"], weight)
    assert torch.equal(second["b"][0], torch.ones(5))
    assert torch.equal(second["b"][1], weight.T)
