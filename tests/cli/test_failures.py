import errno
import os
from pathlib import Path

import pytest
import torch

import lmstack
from lmstack.callbacks.checkpoint_io import TRAINING_STATE, _write_rest
from lmstack.cli.failures import ConfigError, explanation, reported
from lmstack.models.config import NormConfig
from lmstack.prep.build import disk_full_explained


def test_our_own_errors_are_one_line_and_others_keep_their_traceback() -> None:
    with pytest.raises(ValueError) as ours:
        NormConfig(kind="rms", bias=True)
    assert explanation(ours.value) == str(ours.value)
    with pytest.raises(ValueError) as theirs:
        int("x")
    assert explanation(theirs.value) is None
    assert Path(lmstack.__file__).exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConfigError("a\nb"), "a\nb"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "f"),
            "no space left on device: f. Free some and go on with ",
        ),
        (RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0"), "no space left on device. "),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no space left on device. "),
        (RuntimeError("I/O error: Disk quota exceeded (os error 122)"), "disk quota exceeded. Free some space and "),
        (OSError(errno.EFBIG, "File too large", "f"), "file too large: f. Raise the limit (ulimit -f) and go on with "),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "g"), "No such file or directory: g"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "h"), "Permission denied: h"),
    ],
)
def test_what_a_person_can_act_on_is_said_in_a_line(error: Exception, message: str) -> None:
    assert (explanation(error) or "").startswith(message)


def test_a_disk_that_fills_up_under_torch_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / TRAINING_STATE).symlink_to("/dev/full")
    with pytest.raises((OSError, RuntimeError)) as full:
        _write_rest(tmp_path, {"lmstack": {"tokenizer": None}, "moments": torch.zeros(100_000)})
    assert (explanation(full.value) or "").startswith(
        "no space left on device. Free some and go on with ckpt_path=last"
    )


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyError("x"), TypeError("x"), BrokenPipeError()])
def test_a_bug_is_not_hidden(error: Exception) -> None:
    with pytest.raises(type(error)), reported():
        raise error


def test_exit_statuses_tell_configs_runs_and_interrupts_apart(capsys: pytest.CaptureFixture[str]) -> None:
    statuses = []
    for error in (ConfigError("x"), OSError(errno.ENOSPC, "full", "f"), KeyboardInterrupt()):
        with reported() as outcome:
            raise error
        statuses.append(outcome.exit_status)
    assert statuses == [2, 1, 130]
    assert "Traceback" not in capsys.readouterr().err


def test_the_traceback_is_shown_on_request(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMSTACK_TRACEBACK", "1")
    with reported():
        raise ConfigError("x")
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupted_tool_is_not_told_of_checkpoints(capsys: pytest.CaptureFixture[str]) -> None:
    with reported(go_on="the same command"):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "lmstack: interrupted. Go on with the same command.\n"


def test_what_our_own_code_says_of_a_full_disk_is_not_said_again() -> None:
    with pytest.raises(ValueError) as ours, disk_full_explained(Path("out")):
        raise OSError(errno.ENOSPC, "full", "f")
    assert explanation(ours.value) == str(ours.value)
    assert "what is finished is kept" in str(ours.value)
