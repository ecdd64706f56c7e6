"""A project with a stub stage in a folder of its own, and a command line that runs in this process."""

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lmstack.cli.main import main

HERE = Path(__file__).parent


@dataclass
class Result:
    status: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    shutil.copytree(HERE / "conf", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("LMSTACK_RUN_ID", "LMSTACK_RESULT", "LMSTACK_TRACEBACK"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    levels = {name: logging.getLogger(name).level for name in ("lightning", "lightning.pytorch", "lightning.fabric")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's: this module asks what the user sees, not what Lightning warns of
        yield tmp_path
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    os.environ.pop("LMSTACK_RUN_ID", None)
    sys.modules.pop("stub_stage", None)


@pytest.fixture
def lmstack(project: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: str) -> Result:
        os.environ.pop("LMSTACK_RUN_ID", None)  # each command is a process of its own
        capsys.readouterr()
        status = main(list(argv))
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return run
