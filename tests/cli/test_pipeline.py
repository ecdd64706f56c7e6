"""A pipeline: each stage from the one before, finished stages not repeated, mistakes told before anything runs."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lmstack.cli import pipeline as module
from lmstack.cli.failures import ConfigError
from lmstack.cli.pipeline import StageConfig, pipeline


class Commands:
    """Stands for `subprocess.run`: notes what would have run, and ends as told."""

    def __init__(self, statuses: dict[str, int] | None = None) -> None:
        self.statuses, self.ran = statuses or {}, []

    def __call__(self, argv: list[str], check: bool) -> subprocess.CompletedProcess[bytes]:
        words = argv[argv.index("lmstack") + 1 :]
        self.ran.append(words)
        name = next((w.rpartition("/")[2] for w in words if w.startswith("trainer.default_root_dir=")), words[0])
        return subprocess.CompletedProcess(argv, self.statuses.get(name, 0))


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    found = Commands()
    monkeypatch.setattr(module.subprocess, "run", found)
    return found


def stages(folder: Path, **changes: Any) -> dict[str, StageConfig]:
    config = folder / "stage.yaml"
    config.write_text("{}")
    chain = {
        "base": StageConfig(fit=str(config)),
        "sft": StageConfig(fit=str(config), after="base", overrides=["model.init_from=@base"]),
        "ppo": StageConfig(fit=str(config), after="sft", overrides=["model.init_from=@sft", "x=@base"]),
    }
    for name, fields in changes.items():
        for key, value in fields.items():
            setattr(chain[name], key, value)
    return chain


def started(commands: Commands) -> list[str]:
    roots = [next(w for w in words if w.startswith("trainer.default")) for words in commands.ran if words[0] == "fit"]
    return [root.rpartition("/")[2] for root in roots]


def test_each_stage_starts_from_the_run_it_names(tmp_path: Path, commands: Commands) -> None:
    out = tmp_path / "out"
    pipeline(output=str(out), stages=stages(tmp_path), prepare=["data build --config 'a b.yaml'"])
    assert commands.ran[0] == ["data", "build", "--config", "a b.yaml"]
    assert started(commands) == ["base", "sft", "ppo"]
    assert f"model.init_from={out}/base" in commands.ran[2]
    assert f"model.init_from={out}/sft" in commands.ran[3]
    assert f"x={out}/base" in commands.ran[3]
    assert all("ckpt_path=last" in words for words in commands.ran[1:])
    assert "base" in (out / "report.html").read_text()


def test_what_is_finished_is_not_repeated_and_what_failed_goes_on(tmp_path: Path, commands: Commands) -> None:
    out = str(tmp_path / "out")
    commands.statuses = {"sft": 130}
    with pytest.raises(SystemExit) as stopped:
        pipeline(output=out, stages=stages(tmp_path))
    assert stopped.value.code == 130
    assert started(commands) == ["base", "sft"]
    commands.ran, commands.statuses = [], {}
    pipeline(output=out, stages=stages(tmp_path))
    assert started(commands) == ["sft", "ppo"]
    commands.ran = []
    pipeline(output=out, stages=stages(tmp_path))
    assert commands.ran == []


def test_time_adds_up_over_interruptions(tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 100.0, 107.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    one = {"base": stages(tmp_path)["base"]}
    commands.statuses = {"base": 1}
    with pytest.raises(SystemExit):
        pipeline(output=str(tmp_path / "out"), stages=one)
    commands.statuses = {}
    pipeline(output=str(tmp_path / "out"), stages=one)
    assert json.loads((tmp_path / "out/.pipeline/base.json").read_text())["seconds"] == 17.0


def test_a_finished_stage_with_other_settings_is_refused(tmp_path: Path, commands: Commands) -> None:
    pipeline(output=str(tmp_path / "out"), stages=stages(tmp_path))
    with pytest.raises(ConfigError, match="sft is finished with other settings"):
        pipeline(output=str(tmp_path / "out"), stages=stages(tmp_path, sft={"overrides": ["a=1"]}))


def test_an_existing_run_takes_a_stages_place(tmp_path: Path, commands: Commands) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    pipeline(output=str(tmp_path / "out"), stages=stages(tmp_path, base={"use": str(mine)}))
    assert started(commands) == ["sft", "ppo"]
    assert f"model.init_from={mine}" in commands.ran[0]


def test_whoever_needs_a_skipped_stage_gets_the_one_before_it(tmp_path: Path, commands: Commands) -> None:
    pipeline(output=str(tmp_path / "out"), stages=stages(tmp_path, sft={"skip": True}))
    assert started(commands) == ["base", "ppo"]
    assert f"model.init_from={tmp_path}/out/base" in commands.ran[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sft": {"after": "bse"}}, "stages.sft.after=bse: no such stage"),
        ({"sft": {"use": "nowhere/at/all"}}, "stages.sft.use=nowhere/at/all: there is no such folder"),
        ({"sft": {"fit": "nowhere.yaml"}}, "stages.sft.fit=nowhere.yaml: there is no such config"),
        ({"ppo": {"overrides": ["model.init_from=@sfft"]}}, "no stage @sfft"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    tmp_path: Path, commands: Commands, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        pipeline(output=str(tmp_path / "out"), stages=stages(tmp_path, **changes))
    assert commands.ran == []
    assert not (tmp_path / "out").exists()


def test_nothing_to_fall_back_on_is_said(tmp_path: Path, commands: Commands) -> None:
    with pytest.raises(ConfigError, match=r"stages.base.skip: another stage needs it"):
        pipeline(output=str(tmp_path / "out"), stages=stages(tmp_path, base={"skip": True}))
