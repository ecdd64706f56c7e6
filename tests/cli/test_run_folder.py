import os
from pathlib import Path
from typing import Any

import pytest

from lmstack.cli.args import parse_arguments
from lmstack.cli.compose import Composition, compose
from lmstack.cli.failures import ConfigError
from lmstack.cli.run_folder import choose_run_to_continue, refuse_used_folder, remove_old_run, resolve_checkpoint
from lmstack.models.checkpoint_folder import atomic_folder, folder_name

ARGV = ["--config", "conf/stub.yaml"]


def checkpoint(run: str, step: int) -> Path:
    path = Path(run, "checkpoints", folder_name(step))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(path, {"step": step, "tokens_seen": 0, "metrics": {}}) as folder:
        (folder / "weights").write_text("w" * step)
    return path


def composed(*overrides: str) -> Composition:
    return compose(parse_arguments([*ARGV, *overrides]))


@pytest.fixture(autouse=True)
def _in_project(project: Path) -> None:
    del project


def test_last_is_the_newest_checkpoint_that_is_whole() -> None:
    config = composed("ckpt_path=last").values
    assert resolve_checkpoint("fit", config) is None
    older, newer = checkpoint("runs/stub", 1), checkpoint("runs/stub", 2)
    assert resolve_checkpoint("fit", config) == newer
    (newer / "weights").write_text("torn")
    assert resolve_checkpoint("fit", config) == older


def test_a_run_or_checkpoint_folder_may_be_named() -> None:
    path = checkpoint("runs/other", 3)
    assert resolve_checkpoint("fit", composed("ckpt_path=runs/other").values) == path
    assert resolve_checkpoint("fit", composed(f"ckpt_path={path}").values) == path
    (path / "weights").unlink()
    with pytest.raises(ConfigError, match="the run 'runs/other' has no checkpoint that is whole"):
        resolve_checkpoint("fit", composed("ckpt_path=runs/other").values)


def test_validating_without_a_checkpoint_is_refused_and_training_is_not() -> None:
    with pytest.raises(ConfigError, match="ckpt_path=last: runs/stub has no checkpoint yet"):
        resolve_checkpoint("validate", composed("ckpt_path=last").values)


def test_a_used_folder_is_refused_by_name() -> None:
    refuse_used_folder(composed())
    checkpoint("runs/stub", 1)
    with pytest.raises(
        ConfigError, match=r"^runs/stub already holds a run .* folder with vars.name=\.\.\., or replace"
    ):
        refuse_used_folder(composed())
    with pytest.raises(ConfigError, match=r"another folder with trainer.default_root_dir=\.\.\."):
        refuse_used_folder(composed("trainer.default_root_dir=runs/stub"))
    refuse_used_folder(composed("overwrite=true"))


def test_overwriting_removes_what_a_run_writes_and_nothing_else() -> None:
    checkpoint("runs/stub", 1)
    for name in (
        "config.yaml",
        "config.1.yaml",
        "run.json",
        "metrics.csv",
        "samples.jsonl",
        "events.out.tfevents.1",
        "mine",
    ):
        Path("runs/stub", name).touch()
    remove_old_run(Path("runs/stub"))
    assert [path.name for path in Path("runs/stub").iterdir()] == ["mine"]


def test_with_a_run_id_in_the_name_last_is_the_newest_such_run_with_a_checkpoint() -> None:
    overrides = ["ckpt_path=last", 'trainer.default_root_dir="runs/${vars.name}-${run_id:}"']
    for age, name in ((30, "runs/stub-1"), (20, "runs/stub-2"), (10, "runs/other-3")):
        checkpoint(name, 1)
        os.utime(Path(name, "checkpoints"), (10_000 - age, 10_000 - age))
    Path("runs/stub-4").mkdir()  # began, and saved nothing
    composition = composed(*overrides)
    assert choose_run_to_continue(composition)
    assert composed(*overrides).values["trainer"]["default_root_dir"] == "runs/stub-2"


def test_a_run_whose_checkpoints_are_all_damaged_is_passed_over() -> None:
    overrides = ["ckpt_path=last", 'trainer.default_root_dir="runs/${run_id:}"']
    checkpoint("runs/1", 1)
    os.utime("runs/1/checkpoints", (1, 1))
    (checkpoint("runs/2", 1) / "weights").write_text("torn")
    assert choose_run_to_continue(composed(*overrides))
    assert composed(*overrides).values["trainer"]["default_root_dir"] == "runs/1"


def test_without_a_run_id_there_is_nothing_to_choose() -> None:
    checkpoint("runs/stub", 1)
    assert not choose_run_to_continue(composed("ckpt_path=last"))


def test_a_new_run_in_a_used_folder_is_refused_on_the_command_line(lmstack: Any) -> None:
    checkpoint("runs/stub", 1)
    result = lmstack("fit", *ARGV)
    assert result.status == 2
    assert "runs/stub already holds a run with checkpoints" in result.err
    assert lmstack("fit", *ARGV, "overwrite=true").status == 0
    assert not Path("runs/stub/checkpoints").exists()


def test_last_without_a_checkpoint_starts_at_step_0_and_says_so(lmstack: Any) -> None:
    result = lmstack("fit", *ARGV, "ckpt_path=last")
    assert result.status == 0
    assert result.err == "ckpt_path=last: no checkpoint yet, starting at step 0\n"
