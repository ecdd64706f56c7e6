"""Command-line overrides in the words Hydra composes with.

Three things are added to Hydra's own grammar. A value may set a key that no file lists, since signatures, not files,
say which keys exist (`++key=value`). A path steps through class nodes: `callbacks.samples.every_n_steps` reaches
`callbacks.samples.init_args.every_n_steps`. A change of `kind` or `class_path` starts its node afresh, since the
file's other keys belong to the kind that left.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override as HydraOverride
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from lmstack.cli.args import Override

KIND_KEYS = ("kind", "class_path")


def hydra_overrides(
    overrides: list[Override], hydra: Any, config_name: str, is_union: Callable[[dict[str, Any], str], bool]
) -> list[str]:
    """The overrides of one run, as Hydra takes them.

    Args:
        overrides: As typed.
        hydra: The Hydra object of the search path.
        config_name: The composed file.
        is_union: Whether the key of the config is a choice between kinds, each with keys of its own.
    """
    groups, values = split_overrides(overrides, hydra, config_name)
    tree = OmegaConf.to_container(compose(config_name, groups), resolve=False)
    assert isinstance(tree, dict)
    paths = {override.text: _node_path(tree, override.key) for override in values}
    fresh: dict[str, str] = {}
    for override in values:
        for node, kind, dropped in _changed_kinds(tree, paths[override.text], override, hydra):
            if dropped and (kind_key(override) == "class_path" or is_union(tree, node)):
                fresh[node] = f"~{node}"
                print(f"lmstack: {node} is now {kind}: the file's {', '.join(dropped)} dropped", file=sys.stderr)
    return [*groups, *fresh.values(), *(_spelled(o, paths[o.text], hydra) for o in values)]


def sweep_overrides(overrides: list[Override], hydra: Any, config_name: str) -> list[str]:
    """The overrides of a sweep; each run sees its own values again through `hydra_overrides`.

    Args:
        overrides: As typed.
        hydra: The Hydra object of the search path.
        config_name: The composed file.
    """
    groups, values = split_overrides(overrides, hydra, config_name)
    return [*groups, *(_spelled(o, o.key, hydra) for o in values)]


def split_overrides(overrides: list[Override], hydra: Any, config_name: str) -> tuple[list[str], list[Override]]:
    """Choices of a file, ready for Hydra, and the rest.

    Args:
        overrides: As typed.
        hydra: The Hydra object of the search path.
        config_name: The composed file.
    """
    loader = hydra.config_loader
    chosen = loader.compute_defaults_list(config_name, [], RunMode.RUN).overrides.known_choices
    groups, values = [], []
    for override in overrides:
        if not loader.repository.group_exists(override.key.partition("@")[0]):
            values.append(override)
        elif override.deletes:
            groups.append(override.text)
        else:  # `+` where no defaults list names the group, whichever way it was typed
            groups.append(f"{'' if override.key in chosen else '+'}{override.key}={override.value}")
    return groups, values


def kind_key(override: Override) -> str:
    """The last part of the key."""
    return override.key.rpartition(".")[2]


def _spelled(override: Override, path: str, hydra: Any) -> str:
    if override.deletes:
        return f"~{path}"
    text = f"++{path}={override.value}"
    if not override.is_option:
        return text
    try:  # `--key 'any text'` need not know Hydra's quoting
        _parse(text, hydra)
    except HydraException:
        return f"++{path}={json.dumps(override.value)}"
    return text


def _parse(text: str, hydra: Any) -> HydraOverride:
    return OverridesParser.create(config_loader=hydra.config_loader).parse_overrides([text])[0]


def _node_path(tree: Any, key: str) -> str:
    path: list[str] = []
    node = tree
    for part in key.split("."):
        if isinstance(node, dict) and "init_args" in node and part not in ("class_path", "init_args", "dict_kwargs"):
            path.append("init_args")
            node = node["init_args"]
        path.append(part)
        node = node.get(part) if isinstance(node, dict) else None
    return ".".join(path)


def _changed_kinds(tree: Any, path: str, override: Override, hydra: Any) -> list[tuple[str, str, list[str]]]:
    """(node, its new kind, keys of the file that go) for an override of `node.kind` or of a whole `node={kind: ..}`."""
    if override.deletes or override.value is None:
        return []
    node, _, last = path.rpartition(".")
    given: Any = override.value
    if last not in KIND_KEYS:
        node, given = path, _parse(f"++{path}={override.value}", hydra).value()
        last = next((key for key in KIND_KEYS if isinstance(given, dict) and key in given), "")
        given = given.get(last) if last else None
    old = _at(tree, node)
    if not last or not isinstance(old, dict) or last not in old or str(old[last]) == str(given).strip("'\""):
        return []
    return [(node, str(given), sorted(set(old) - {last}))]


def _at(tree: Any, path: str) -> Any:
    for part in path.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
