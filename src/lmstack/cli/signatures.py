"""The keys a config may have, read from signatures: names, types, defaults and what the docstrings say of them."""

import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union

from lmstack.cli.failures import ConfigError
from lmstack.cli.stage_table import load_class, load_stage

REQUIRED: Any = inspect.Parameter.empty


@dataclass(frozen=True)
class Parameter:
    """One key.

    Attributes:
        hint: Its type; `Any` where the signature has none.
        default: Its default, or `REQUIRED`.
        text: What the docstring says.
    """

    hint: Any
    default: Any
    text: str = ""


@dataclass(frozen=True)
class Signature:
    """What a class is built from.

    Attributes:
        parameters: By name, in order.
        is_open: Whether further keywords are taken.
    """

    parameters: dict[str, Parameter]
    is_open: bool


@functools.cache
def signature_of(function: Callable[..., Any]) -> Signature:
    """Read a class's `__init__`, a dataclass's fields, or a function's arguments.

    Args:
        function: The class or function.
    """
    texts = argument_texts(function)
    parameters: dict[str, Parameter] = {}
    is_open = False
    owners = function.__mro__[:-1] if isinstance(function, type) else (function,)
    for owner in owners:
        target = owner.__init__ if isinstance(owner, type) else owner
        if isinstance(owner, type) and "__init__" not in vars(owner):
            continue
        hints = _type_hints(owner if dataclasses.is_dataclass(owner) else target)
        is_open = False
        for name, parameter in inspect.signature(target).parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                is_open = True
            elif name != "self" and parameter.kind is not parameter.VAR_POSITIONAL:
                inherited = owner is not owners[0] and parameter.default is REQUIRED  # the first may well give it
                default = None if inherited else parameter.default
                parameters.setdefault(name, Parameter(hints.get(name, Any), default, texts.get(name, "")))
        if not is_open:  # keywords passed on reach the next class's __init__
            break
    return Signature(parameters, is_open)


def _type_hints(target: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError, AttributeError):
        return dict(getattr(target, "__annotations__", {}))


_ENTRY = re.compile(r"^\s{4,}(\*{0,2}\w+)(?:\s*\([^)]*\))?:\s*(.*)$")


def argument_texts(target: Any) -> dict[str, str]:
    """What a Google-style docstring says of each argument or attribute.

    Args:
        target: A class or function.
    """
    text = inspect.getdoc(target) or ""
    if isinstance(target, type):
        text += "\n" + (inspect.getdoc(target.__init__) or "")
    texts: dict[str, str] = {}
    name, inside = "", False
    for line in text.splitlines():
        if line and not line.startswith(" "):
            inside = line.strip() in ("Args:", "Attributes:")
        elif inside and (match := _ENTRY.match(line)) and len(line) - len(line.lstrip()) == 4:
            name = match[1].lstrip("*")
            texts[name] = match[2].strip()
        elif inside and name and line.strip():
            texts[name] = f"{texts[name]} {line.strip()}".strip()
    return texts


def members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the hint alone.

    Args:
        hint: A type hint.
    """
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def kinds(hint: Any) -> dict[str, type]:
    """The dataclasses of a union by their `kind`; empty unless there is a choice between several.

    Args:
        hint: A type hint.
    """
    configs = [member for member in members(hint) if dataclasses.is_dataclass(member)]
    if len(configs) < 2:
        return {}
    by_kind: dict[str, type] = {}
    for config in configs:
        for kind in typing.get_args(typing.get_type_hints(config).get("kind")):
            by_kind[str(kind)] = typing.cast(type, config)
    return by_kind


def literals(hint: Any) -> list[str]:
    """The words of a `Literal`, or of all those in a union.

    Args:
        hint: A type hint.
    """
    return list(
        dict.fromkeys(
            str(word) for m in members(hint) if typing.get_origin(m) is Literal for word in typing.get_args(m)
        )
    )


def type_name(hint: Any) -> str:
    """A type in the words of a config file.

    Args:
        hint: A type hint.
    """
    if hint is type(None):
        return "null"
    if hint is Any or hint is REQUIRED:
        return "any value"
    if choices := kinds(hint):
        nullable = " or null" if type(None) in members(hint) else ""
        return f"a mapping with kind: {' | '.join(choices)}{nullable}"
    if words := literals(hint):
        others = [type_name(member) for member in members(hint) if typing.get_origin(member) is not Literal]
        return " | ".join([f"one of {', '.join(words)}", *others])
    if len(members(hint)) > 1:
        return " | ".join(dict.fromkeys(type_name(member) for member in members(hint)))
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return f"a mapping ({getattr(hint, '__name__', hint)})"
    if origin is not None:
        inner = ", ".join(type_name(arg) for arg in args if arg is not Ellipsis)
        return f"{getattr(origin, '__name__', str(origin))}[{inner}]" if inner else str(origin)
    return getattr(hint, "__name__", str(hint))


def children(hint: Any) -> dict[str, Parameter]:
    """The keys below a value of this type, of all kinds together.

    Args:
        hint: A type hint.
    """
    found: dict[str, Parameter] = {}
    for member in members(hint):
        if dataclasses.is_dataclass(member):
            for name, parameter in signature_of(typing.cast(type, member)).parameters.items():
                found.setdefault(name, parameter)
    return found


def leaves(parameters: dict[str, Parameter], prefix: str) -> Iterator[tuple[str, Parameter]]:
    """Every key at or below these, with dots.

    Args:
        parameters: Keys of one level.
        prefix: What stands before them.
    """
    for name, parameter in parameters.items():
        yield joined(prefix, name), parameter
        yield from leaves(children(parameter.hint), joined(prefix, name))


def joined(prefix: str, name: str) -> str:
    """A key with dots.

    Args:
        prefix: What stands before it; perhaps nothing.
        name: Its last part.
    """
    return f"{prefix}.{name}" if prefix else name


def root_parameters(config: dict[str, Any]) -> dict[str, Signature]:
    """The signatures behind `model`, `data` and `trainer`.

    Args:
        config: The composed config.

    Raises:
        ConfigError: The config's stage does not exist.
    """
    from lightning.pytorch import Trainer

    stage = load_stage(config.get("stage"))
    return {"model": signature_of(stage.model), "data": signature_of(stage.data), "trainer": signature_of(Trainer)}


def is_union(config: dict[str, Any], path: str) -> bool:
    """Whether the key is a choice between kinds, each with keys of its own.

    Args:
        config: The config as composed so far.
        path: The key, with dots.
    """
    first, *rest = path.split(".")
    if first not in ("model", "data"):
        return False
    try:
        stage = load_stage(config.get("stage"))
    except ConfigError:
        return True  # said elsewhere
    parameters = signature_of(getattr(stage, first)).parameters
    hint: Any = Any
    for part in rest:
        if part not in parameters:
            return False
        hint = parameters[part].hint
        parameters = children(hint)
    return bool(kinds(hint))


def node_class(value: dict[str, Any], key: str) -> type:
    """The class that a `class_path` node names.

    Args:
        value: The node.
        key: Its place in the config.

    Raises:
        ConfigError: There is no such class.
    """
    return load_class(str(value["class_path"]), f"{key}.class_path")
