"""Train a language model through every stage, with numbers that can be checked."""

import importlib.metadata
import sys
from typing import Any

__version__ = "0.1.0"

_hidden: set[str] = set()
_distribution = importlib.metadata.distribution


def hide_package(name: str) -> bool:
    """Let an installed package look as if it were not installed.

    Args:
        name: Name of the package and of its distribution.

    Returns:
        Whether it is hidden; not when it has been imported already.
    """
    if name in sys.modules:
        return False
    sys.modules[name] = None  # type: ignore[assignment]  # `import name` raises ModuleNotFoundError
    _hidden.add(name)
    importlib.metadata.distribution = _visible_distribution
    return True


def show_package(name: str) -> None:
    """Undo `hide_package`.

    Args:
        name: As given there.
    """
    _hidden.discard(name)
    del sys.modules[name]


def _visible_distribution(distribution_name: str, *args: Any) -> importlib.metadata.Distribution:
    if distribution_name.lower() in _hidden:
        raise importlib.metadata.PackageNotFoundError(distribution_name)
    return _distribution(distribution_name, *args)


def _hide_unfit_torchvision() -> None:
    # litdata asks for torchvision, and an installer takes it from PyPI, built for CUDA. Beside a torch built for the
    # CPU its operators cannot load, and torchmetrics, hence Lightning, imports it whenever it is there.
    try:
        torch, torchvision = (importlib.metadata.version(name) for name in ("torch", "torchvision"))
    except importlib.metadata.PackageNotFoundError:
        return
    if torch.endswith("+cpu") and not torchvision.endswith("+cpu"):
        hide_package("torchvision")


_hide_unfit_torchvision()
