import os
import subprocess
import sys
from pathlib import Path

import pytest

import lmstack
from lmstack.cli.main import TOOLS, TRAINING, main, run

HEAVY = "{'torch', 'lightning', 'hydra', 'omegaconf', 'jsonargparse', 'numpy', 'rich', 'yaml'}"


def test_the_first_screen_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    screen = capsys.readouterr().out
    assert all(f"  {name} " in screen for name in [*TRAINING, *TOOLS])
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == screen


def test_a_mistyped_command_is_told_what_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fitt"]) == 2
    assert capsys.readouterr().err == "lmstack: error: unknown command 'fitt'. Did you mean fit?\n"


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lmstack {lmstack.__version__}\n"


@pytest.mark.parametrize("argv", [["--help"], ["fitt"], ["config", "--help"], ["plan", "--help"]])
def test_simple_answers_import_nothing_heavy(argv: list[str]) -> None:
    code = f"import sys; from lmstack.cli.main import main; main({argv}); sys.exit(bool({HEAVY} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_composing_a_config_imports_no_torch() -> None:
    code = "import sys, lmstack.cli.compose, lmstack.cli.args; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_python_dash_m_is_the_same_command() -> None:
    result = subprocess.run([sys.executable, "-m", "lmstack", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"lmstack {lmstack.__version__}\n"


@pytest.mark.parametrize("argv", [["--help"], ["config", "--config", "conf/stub.yaml", f"vars.x={'y' * 100_000}"]])
def test_a_reader_that_has_seen_enough_ends_it_quietly(argv: list[str], project: Path) -> None:
    """As in `lmstack config ... | head -1`: less, or more, than the pipe's buffer was left."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "lmstack", *argv]
        result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writing)
    assert (result.stderr, result.returncode) == ("", 141)


def test_another_pipe_that_breaks_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> int:
        raise BrokenPipeError

    monkeypatch.setattr("lmstack.cli.main.main", broken)
    with pytest.raises(BrokenPipeError):
        run()
