"""A tool is a function: its signature is its command line, its docstring its help.

`lmstack data build --config conf/corpus/stdlib.yaml output=data/mine`: the config is composed as for training, and the
keys are the function's arguments. Text arguments are taken as typed, whatever Hydra's grammar would make of them.
"""

import ast
import difflib
import importlib
import importlib.util
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lmstack.cli.args import Arguments, parse_arguments
from lmstack.cli.failures import ConfigError


def run_tool(command: str, function_paths: str | Mapping[str, str], argv: list[str]) -> int:
    """Run a tool.

    Args:
        command: Its name on the command line.
        function_paths: `module:function`, or one for each subcommand.
        argv: What follows the name.

    Returns:
        The exit status.

    Raises:
        ConfigError: The command line or config is wrong.
    """
    if not isinstance(function_paths, str):
        if not argv or argv[0] in ("-h", "--help"):
            print(f"usage: lmstack {command} <{' | '.join(function_paths)}> [key=value ...]\n")
            for name, path in function_paths.items():
                print(f"  {name:10}  {_summary(path)}")
            print(f"\n  lmstack {command} <name> --help    what it takes")
            return 0
        name, *argv = argv
        if name not in function_paths:
            near = difflib.get_close_matches(name, function_paths, 1)
            hint = f"Did you mean {near[0]}?" if near else f"Commands: {', '.join(function_paths)}."
            raise ConfigError(f"lmstack {command}: no such command {name!r}. {hint}")
        return run_tool(f"{command} {name}", function_paths[name], argv)
    function = _load(function_paths)
    arguments = parse_arguments(argv)
    if arguments.wants_help:
        print(tool_help(command, function))
        return 0
    if arguments.is_sweep:
        raise ConfigError(f"-m sweeps a training command; lmstack {command} runs once.")
    function(**tool_arguments(function, arguments))
    return 0


def tool_arguments(function: Callable[..., Any], arguments: Arguments) -> dict[str, Any]:
    """What to call a function with.

    Args:
        function: The tool.
        arguments: The command line.

    Raises:
        ConfigError: A key or value is wrong.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    from lmstack.cli.compose import compose_values
    from lmstack.cli.explain import condensed, mistakes_in
    from lmstack.cli.signatures import signature_of

    signature = signature_of(function)
    text_keys = {name for name, parameter in signature.parameters.items() if _is_text(parameter.hint)}
    _, values = compose_values(arguments, text_keys=text_keys)
    values.pop("vars", None)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(function, fail_untyped=False)
    try:
        parsed = parser.instantiate(parser.parse_object(values))
    except ArgumentError as error:
        raise ConfigError("\n".join(mistakes_in(values, signature)) or condensed(str(error))) from error
    return {name: parsed[name] for name in signature.parameters}


def tool_help(command: str, function: Callable[..., Any]) -> str:
    """The help of a tool.

    Args:
        command: Its name on the command line.
        function: The tool.
    """
    from lmstack.cli.option_list import entries
    from lmstack.cli.signatures import signature_of

    doc = (function.__doc__ or "").partition("Args:")[0]
    about = "\n\n".join(textwrap.fill(" ".join(part.split()), 112) for part in doc.split("\n\n") if part.strip())
    options = "\n".join(entries(signature_of(function).parameters, ""))
    return f"usage: lmstack {command} [--config <file>.yaml] [key=value ...]\n\n{about}\n\n{options}"


def _load(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _summary(path: str) -> str:
    """First line of a function's docstring; read, not imported, as some tools import torch."""
    module, _, name = path.partition(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    definitions = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
    function = next(node for node in definitions if isinstance(node, ast.FunctionDef) and node.name == name)
    return (ast.get_docstring(function) or "").partition("\n")[0]


def _is_text(hint: Any) -> bool:
    from lmstack.cli.signatures import members

    return set(members(hint)) - {type(None)} == {str}
