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
