"""The mathematics needs no Lightning, Hydra or jsonargparse."""

import subprocess
import sys

import pytest

RIM = "{'lightning', 'pytorch_lightning', 'hydra', 'omegaconf', 'jsonargparse'}"


@pytest.mark.parametrize(
    "statement",
    [
        "from lmstack.models import Transformer",
        "import lmstack.models, lmstack.nn, lmstack.losses, lmstack.optim",
        "import lmstack.data, lmstack.tokenization, lmstack.prep",
        "import lmstack.generation, lmstack.evaluation, lmstack.planning, lmstack.run_record",
    ],
)
def test_it_imports_without_the_rim(statement: str) -> None:
    code = f"import sys; {statement}; print(sorted({RIM} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_importing_lmstack_imports_no_torch() -> None:
    code = "import sys, lmstack, lmstack.cli.main; print('torch' in sys.modules, 'numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False False"


@pytest.mark.parametrize(
    ("torch", "torchvision", "is_hidden"),
    [("2.13.0+cpu", "0.28.0", True), ("2.13.0+cpu", "0.28.0+cpu", False), ("2.13.0", "0.28.0", False)],
)
def test_a_torchvision_that_does_not_fit_is_hidden(torch: str, torchvision: str, is_hidden: bool) -> None:
    code = f"""
import importlib.metadata as metadata, sys
versions = {{"torch": {torch!r}, "torchvision": {torchvision!r}}}
metadata.version = versions.__getitem__
import lmstack
print("torchvision" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(is_hidden)
