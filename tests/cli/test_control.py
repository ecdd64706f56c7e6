import os
from pathlib import Path
from typing import Any

import pytest

from lmstack.cli.control import HELP, parse_request
from lmstack.cli.failures import ConfigError
from lmstack.cli.main import main
from lmstack.control_requests import answer, send_request, take_request


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        ("set a.b=1 c=x=y", {"command": "set", "changes": {"a.b": "1", "c": "x=y"}}),
        ("save", {"command": "save"}),
        ("stop", {"command": "stop"}),
        ("rollback 120", {"command": "rollback", "step": 120}),
    ],
)
def test_a_command_is_a_request(line: str, request_: dict[str, Any]) -> None:
    assert parse_request(["runs/x", *line.split()]) == (Path("runs/x"), request_, 60.0)
    assert parse_request(["runs/x", *line.split(), "--wait", "5"])[2] == 5.0


@pytest.mark.parametrize("line", ["", "set", "set lr", "set =1", "stop now", "rollback", "rollback -1", "halt"])
def test_another_command_is_refused(line: str) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        parse_request(["runs/x", *line.split()])


def test_the_help_names_what_can_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["control", "--help"]) == 0
    assert capsys.readouterr().out == HELP


def test_no_run_is_no_answer_and_the_request_is_taken_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["control", str(tmp_path / "nope"), "save"]) == 2
    assert "no such run folder" in capsys.readouterr().err
    assert main(["control", str(tmp_path), "save", "--wait", "0.2"]) == 2
    assert "no answer in 0.2 s, and the request is taken back" in capsys.readouterr().err
    assert list((tmp_path / "control").iterdir()) == []


def test_a_request_that_was_taken_is_not_said_to_be_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when the hashes of a large checkpoint are checked before a rollback."""

    def send_and_take(folder: Path, request: dict[str, Any]) -> Path:
        path = send_request(folder, request)
        assert take_request(folder) is not None
        return path

    monkeypatch.setattr("lmstack.cli.control.send_request", send_and_take)
    assert main(["control", str(tmp_path), "rollback", "3", "--wait", "0.2"]) == 2
    assert "the run has taken the request, and says nothing after 0.2 s" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["directory", "unremovable", "pipe", "no JSON", "no command"])
def test_nothing_that_lies_in_the_folder_ends_the_run_or_hides_a_request(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stray = tmp_path / "control" / "0.request.json"
    stray.parent.mkdir()
    match what:
        case "directory":
            stray.mkdir()
        case "pipe":
            os.mkfifo(stray)
        case "unremovable":  # as root's in a folder of root's
            stray.write_text('{"command": "save"}')
            unlink = Path.unlink

            def refuse(path: Path, missing_ok: bool = False) -> None:
                if path == stray:
                    raise PermissionError(1, "Operation not permitted", str(path))
                unlink(path, missing_ok)

            monkeypatch.setattr(Path, "unlink", refuse)
        case "no JSON":
            stray.write_bytes(b'\xff{"comm')
        case "no command":
            stray.write_text('["save"]')
    send_request(tmp_path, {"command": "stop"})
    taken = take_request(tmp_path)
    assert taken is not None
    assert taken["command"] == "stop"
    assert take_request(tmp_path) is None


def test_a_folder_that_cannot_be_looked_into_holds_no_request(tmp_path: Path) -> None:
    (tmp_path / "control").write_text("")
    assert take_request(tmp_path) is None


def test_an_answer_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    answer({"path": str(tmp_path / "1.request.json")}, "saving step 3")
    assert "cannot answer 'saving step 3'" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for another user")
def test_what_root_asks_for_belongs_to_the_user_of_the_run(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    path = send_request(tmp_path, {"command": "save"})
    assert (path.stat().st_uid, path.parent.stat().st_uid) == (12345, 12345)


@pytest.mark.parametrize(("said", "status"), [("after step 3: x 1 -> 2", 0), ("refused: no", 1)])
def test_the_answer_of_the_run_is_shown(
    tmp_path: Path, said: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def send_and_answer(folder: Path, request: dict[str, Any]) -> Path:
        path = send_request(folder, request)
        assert path.stat().st_mode & 0o777 == 0o600
        taken = take_request(folder)
        assert taken is not None
        assert {key: taken[key] for key in request} == request
        assert take_request(folder) is None
        answer(taken, said)
        return path

    monkeypatch.setattr("lmstack.cli.control.send_request", send_and_answer)
    assert main(["control", str(tmp_path), "set", "x=2"]) == status
    captured = capsys.readouterr()
    assert (captured.err if status else captured.out).strip() == said
    assert list((tmp_path / "control").iterdir()) == []
