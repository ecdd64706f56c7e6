"""Why jsonargparse refused a config, in one line a mistake: key, value, rule, nearest right name.

jsonargparse judges; this only finds the words, by walking the same signatures with the composed config.
"""

import dataclasses
import difflib
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from lmstack.cli.failures import ConfigError
from lmstack.cli.signatures import (
    REQUIRED,
    Parameter,
    Signature,
    joined,
    kinds,
    leaves,
    literals,
    members,
    node_class,
    root_parameters,
    signature_of,
    type_name,
)

_SCALARS: dict[Any, Callable[[Any], bool]] = {
    type(None): lambda value: value is None,
    bool: lambda value: isinstance(value, bool),
    int: lambda value: isinstance(value, int) and not isinstance(value, bool),
    float: lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    str: lambda value: isinstance(value, str),
    Path: lambda value: isinstance(value, str),
}


def mistakes(config: dict[str, Any]) -> list[str]:
    """Every mistake in a composed config, a line each; none where the signatures alone cannot tell.

    Args:
        config: The composed config.
    """
    roots = root_parameters(config)
    known = [pair for name, signature in roots.items() for pair in leaves(signature.parameters, name)]
    found: list[str] = []
    for name, signature in roots.items():
        if name != "trainer" or config.get(name):
            found += _in_mapping(config.get(name) or {}, signature, name, known)
    strategy = (config.get("trainer") or {}).get("strategy")
    if isinstance(strategy, dict):
        found += _in_class_node(strategy, "trainer.strategy")
    for group in ("callbacks", "logger"):
        for name, node in (config.get(group) or {}).items():
            if node:
                found += _in_class_node(node, f"{group}.{name}")
    if not _SCALARS[int](config.get("seed_everything", 0)) and not isinstance(config["seed_everything"], bool):
        found.append(f"seed_everything: expected int, got {config['seed_everything']!r}")
    return found


def mistakes_in(values: dict[str, Any], signature: Signature) -> list[str]:
    """The same for the arguments of one function.

    Args:
        values: By name.
        signature: Of the function.
    """
    return list(_in_mapping(values, signature, "", list(leaves(signature.parameters, ""))))


def _in_mapping(value: Any, signature: Signature, key: str, known: list[tuple[str, Parameter]]) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{key}: expected a mapping, got {value!r}"
        return
    meant: set[str] = set()
    for name, given in value.items():
        place = joined(key, name)
        if name in signature.parameters:
            yield from _in_value(given, signature.parameters[name].hint, place, known)
        elif not signature.is_open:
            nearest = _nearest(place, signature, known)
            meant |= {nearest[0]} if nearest else set()
            yield f"{place}: no such key (value {given!r}).{_meant(nearest, signature)}"
    for name, parameter in signature.parameters.items():
        place = joined(key, name)
        if parameter.default is REQUIRED and name not in value and place not in meant:
            yield f"{place}: required, not given ({type_name(parameter.hint)}). Set {place}=..."


def _in_value(value: Any, hint: Any, key: str, known: list[tuple[str, Parameter]]) -> Iterator[str]:
    choices = kinds(hint)
    if choices and isinstance(value, dict):
        yield from _in_union(value, choices, key)
        return
    if _accepts(value, hint):
        return
    configs = [m for m in members(hint) if dataclasses.is_dataclass(m)]
    if configs and isinstance(value, dict):
        yield from _in_mapping(value, signature_of(typing.cast(type, configs[0])), key, known)
        return
    near = difflib.get_close_matches(str(value), literals(hint), 1)
    yield f"{key}: expected {type_name(hint)}, got {value!r}" + (f". Did you mean {near[0]}?" if near else "")


def _in_union(value: dict[str, Any], choices: dict[str, type], key: str) -> Iterator[str]:
    if "kind" not in value:
        yield f"{key}.kind: required, not given. Set {key}.kind to one of {', '.join(choices)}"
    elif value["kind"] not in choices:
        near = difflib.get_close_matches(str(value["kind"]), choices, 1)
        hint = f". Did you mean {near[0]}?" if near else ""
        yield f"{key}.kind: expected one of {', '.join(choices)}, got {value['kind']!r}{hint}"
    else:
        signature = signature_of(choices[value["kind"]])
        own = [(joined(key, name), parameter) for name, parameter in signature.parameters.items()]
        for line in _in_mapping(value, signature, key, own):
            yield line.replace("no such key (", f"no such key for kind {value['kind']} (", 1)


def _in_class_node(node: Any, key: str) -> list[str]:
    if not isinstance(node, dict) or "class_path" not in node:
        return [f"{key}: expected a mapping with class_path, got {node!r}"]
    try:
        signature = signature_of(node_class(node, key))
    except ConfigError as error:
        return [str(error)]
    given = {name: v for name, v in node.items() if name not in ("class_path", "init_args", "dict_kwargs")}
    given |= node.get("init_args") or {}
    return list(_in_mapping(given, signature, key, list(leaves(signature.parameters, key))))


def _accepts(value: Any, hint: Any) -> bool:
    """Whether a value may be of a type; where we cannot tell, it may."""
    if len(members(hint)) > 1:
        return any(_accepts(value, member) for member in members(hint))
    if hint in _SCALARS:
        return _SCALARS[hint](value)
    if dataclasses.is_dataclass(hint):
        return isinstance(value, dict) and not list(_in_mapping(value, signature_of(typing.cast(type, hint)), "", []))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return value in hint.__members__
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in args
    if isinstance(origin, type):
        return _accepts_container(value, origin, args)
    return True


def _accepts_container(value: Any, origin: type, args: tuple[Any, ...]) -> bool:
    if issubclass(origin, Mapping):
        return isinstance(value, dict) and (not args or all(_accepts(v, args[1]) for v in value.values()))
    if issubclass(origin, tuple) and Ellipsis not in args:
        return isinstance(value, list | tuple) and len(value) == len(args) and all(map(_accepts, value, args))
    if issubclass(origin, Sequence | set | frozenset):
        return isinstance(value, list | tuple) and (not args or all(_accepts(v, args[0]) for v in value))
    return True


def _meant(nearest: tuple[str, Any] | None, signature: Signature) -> str:
    if nearest is None:
        return f" Keys: {', '.join(signature.parameters)}." if signature.parameters else ""
    name, hint = nearest
    return f" Did you mean {name} ({_with_article(type_name(hint))})?"


def _nearest(key: str, signature: Signature, known: list[tuple[str, Parameter]]) -> tuple[str, Any] | None:
    parent, _, leaf = key.rpartition(".")
    top = key.partition(".")[0] if parent else ""
    here = {name: parameter.hint for name, parameter in known if not parent or name.partition(".")[0] == top}
    same_leaf = [name for name in here if name.rpartition(".")[2] == leaf]
    if same_leaf:  # the right word in the wrong place
        return same_leaf[0], here[same_leaf[0]]
    if near := difflib.get_close_matches(leaf, signature.parameters, 1, 0.6):
        return joined(parent, near[0]), signature.parameters[near[0]].hint
    by_leaf = {name.rpartition(".")[2]: name for name in reversed(here)}
    if near := difflib.get_close_matches(leaf, by_leaf, 1, 0.6):
        return by_leaf[near[0]], here[by_leaf[near[0]]]
    elsewhere = {name: p.hint for name, p in known if name.rpartition(".")[2] == leaf}
    return next(iter(elsewhere.items()), None)


def _with_article(name: str) -> str:
    if name.startswith(("one of", "a mapping", "any")) or "|" in name:
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def condensed(message: str) -> str:
    """What jsonargparse said, on one line, for mistakes that the signatures do not show.

    Args:
        message: Its message.
    """
    lines = [re.sub(r"\s+", " ", line).strip(" -") for line in message.splitlines()]
    kept = [line for line in lines if line and not line.startswith(("Given value", "Subtypes:", "Errors:"))]
    return "; ".join(kept)
