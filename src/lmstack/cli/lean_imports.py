"""Import torch and Lightning without the parts a run does not use: 8 s become 3 s (benchmarks/startup.py).

Two things cost most. torchmetrics, which Lightning imports, imports transformers, matplotlib and scipy wherever they
are installed, for metrics nobody asked for. And `torch._dynamo`, with sympy, is imported to decorate functions that
compilation must skip, though nothing is compiled.
"""

import importlib
import os
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import lmstack
from lmstack.cli.quiet import quieten

_DYNAMO = "torch._dynamo"
_WANTED_BY_TORCHMETRICS = ("transformers", "matplotlib", "scipy", "sklearn", "pandas", "nltk", "torchaudio")


def import_lightning(config: dict[str, Any]) -> None:
    """Import `lightning.pytorch`.

    Args:
        config: The composed config; a run that compiles gets the whole of torch.
    """
    quieten()
    compiles = any(value for key, value in (config.get("model") or {}).items() if str(key).startswith("compile"))
    if not compiles and _DYNAMO not in sys.modules:
        DynamoStandIn().install()
    hidden = [name for name in _WANTED_BY_TORCHMETRICS if lmstack.hide_package(name)]
    importlib.import_module("torchmetrics")
    importlib.import_module("lightning.pytorch.cli")
    for name in hidden:
        lmstack.show_package(name)


class _OptimizedModuleType(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return type(instance).__name__ == "OptimizedModule"


class _OptimizedModule(metaclass=_OptimizedModuleType):
    """Recognizes a compiled module without importing its class."""


class DynamoStandIn(ModuleType):
    """`torch._dynamo` while nothing is compiled.

    It knows how not to trace a function, and for anything else makes way for the real one.
    """

    OptimizedModule = _OptimizedModule

    def __init__(self) -> None:
        super().__init__(_DYNAMO)
        import torch

        self._finder = _SubmoduleFinder(self)
        self.__path__ = [os.path.join(path, "_dynamo") for path in torch.__path__]

    def install(self) -> None:
        """Stand in, until somebody asks for more."""
        import torch

        sys.modules[_DYNAMO] = torch._dynamo = self
        sys.meta_path.insert(0, self._finder)

    def make_way(self) -> ModuleType:
        """Import the real module."""
        if sys.modules.get(_DYNAMO) is self:
            del sys.modules[_DYNAMO]
            sys.meta_path.remove(self._finder)
        return importlib.import_module(_DYNAMO)

    @staticmethod
    def disable(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Callable[..., Any]:
        """A function that compilation skips: itself.

        Args:
            function: The function; None makes a decorator.
        """
        return (lambda f: f) if function is None else function

    @staticmethod
    def graph_break(*_: Any, **__: Any) -> None:
        """Nothing: there is no graph."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked of every module by import, inspect and warnings
            raise AttributeError(name)
        return getattr(self.make_way(), name)


class _SubmoduleFinder(MetaPathFinder):
    """Asked by `import` before its own search: a submodule needs the real package."""

    def __init__(self, stand_in: DynamoStandIn) -> None:
        self.stand_in = stand_in

    def find_spec(self, fullname: str, *_: Any) -> ModuleSpec | None:
        if not fullname.startswith(f"{_DYNAMO}."):
            return None
        self.stand_in.make_way()
        return ModuleSpec(fullname, _AlreadyImported()) if fullname in sys.modules else None


class _AlreadyImported(Loader):
    """Hands out the module that importing the package has brought in."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self._real_spec = sys.modules[spec.name].__spec__
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._real_spec
