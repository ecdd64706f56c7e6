import json
from pathlib import Path

import pytest

from lmstack.callbacks.retention import Retention
from lmstack.models.checkpoint_folder import folder_name

HOUR = 3600.0


def checkpoint(root: Path, step: int, hours: float = 0.0, loss: float | None = None) -> Path:
    folder = root / folder_name(step)
    folder.mkdir()
    metrics = {} if loss is None else {"val/loss": loss}
    (folder / "manifest.json").write_text(json.dumps({"metrics": metrics, "saved_at": hours * HOUR}))
    return folder


def names(folders: list[Path]) -> list[int]:
    return [int(folder.name[5:]) for folder in folders]


def test_the_newest_stay(tmp_path: Path) -> None:
    folders = [checkpoint(tmp_path, step) for step in (1, 2, 3, 4)]
    assert names(Retention(2, 0, None, "val/loss", "min").unkept(folders)) == [1, 2]
    assert Retention(4, 0, None, "val/loss", "min").unkept(folders) == []


@pytest.mark.parametrize(("mode", "gone"), [("min", [1, 3]), ("max", [2, 4])])
def test_the_best_stay(tmp_path: Path, mode: str, gone: list[int]) -> None:
    losses = {1: 5.0, 2: 1.0, 3: 4.0, 4: 2.0, 5: 3.0}
    folders = [checkpoint(tmp_path, step, loss=loss) for step, loss in losses.items()]
    assert names(Retention(1, 2, None, "val/loss", mode).unkept(folders)) == gone


def test_a_loss_that_is_no_number_is_not_the_best(tmp_path: Path) -> None:
    losses = {1: float("nan"), 2: 1.0, 3: float("nan"), 4: 2.0, 5: 3.0}
    folders = [checkpoint(tmp_path, step, loss=loss) for step, loss in losses.items()]
    assert names(Retention(1, 1, None, "val/loss", "min").unkept(folders)) == [1, 3, 4]


def test_checkpoints_between_two_validations_are_not_as_good_as_the_one_before_them(tmp_path: Path) -> None:
    """They carry its metrics along; of their own weights nobody knows."""
    losses = {1: 2.0, 2: 2.0, 3: 1.0, 4: 1.0, 5: 1.0, 6: 3.0}
    folders = [checkpoint(tmp_path, step, loss=loss) for step, loss in losses.items()]
    assert names(Retention(1, 2, None, "val/loss", "min").unkept(folders)) == [2, 4, 5]


def test_one_of_each_stretch_stays_for_ever(tmp_path: Path) -> None:
    """As in a run: every half hour a checkpoint, and what is not kept is deleted at once."""
    retention, there = Retention(1, 0, 2.0, "val/loss", "min"), []
    for number in range(12):
        there.append(checkpoint(tmp_path, number, hours=0.5 * number))
        there = [folder for folder in there if folder not in retention.unkept(there)]
    assert names(there) == [0, 4, 8, 11]


def test_a_damaged_manifest_is_no_obstacle(tmp_path: Path) -> None:
    folders = [checkpoint(tmp_path, step, hours=step, loss=step) for step in (1, 2, 3, 4)]
    (folders[0] / "manifest.json").write_text('{"metr')
    (folders[1] / "manifest.json").unlink()
    assert names(Retention(1, 1, 1.0, "val/loss", "min").unkept(folders)) == [1, 2]


@pytest.mark.parametrize("wrong", [{"last": 0}, {"best": -1}, {"every_hours": 0.0}])
def test_wrong_numbers_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"keep_{next(iter(wrong))}="):
        Retention(**({"last": 1, "best": 0, "every_hours": None, "monitor": "x", "mode": "min"} | wrong))
