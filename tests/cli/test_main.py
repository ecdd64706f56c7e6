import subprocess
import sys

import pytest

import lmstack
from lmstack.cli.main import TOOLS, TRAINING, main

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
