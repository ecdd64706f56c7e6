"""Command-line overrides in the words Hydra composes with.

Three things are added to Hydra's own grammar. A value may set a key that no file lists, since signatures, not files,
say which keys exist (`++key=value`). A path steps through class nodes: `callbacks.samples.every_n_steps` reaches
`callbacks.samples.init_args.every_n_steps` where a file spells it so. And a change of `kind` starts its node afresh.
"""

import json
from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lmstack.cli.args import Override
from lmstack.cli.failures import ConfigError
from lmstack.cli.kinds import KIND_KEYS, start_afresh


def hydra_overrides(overrides: list[Override], hydra: Any, config_name: str | None) -> list[str]:
    """The overrides of one run, as Hydra takes them.

    Args:
        overrides: As typed.
        hydra: The Hydra object of the search path.
        config_name: The composed file; None composes the overrides alone.
    """
    groups, values = split_overrides(overrides, hydra, config_name)
    if not values:
        return groups
    base = compose(config_name, groups)
    tree = OmegaConf.to_container(base, resolve=False)
    paths = [_through_class_nodes(tree, override.key) for override in values]
    spelled = [_spelled(override, path, hydra) for override, path in zip(values, paths, strict=True)]
    return [*groups, *_deletions(base, tree, values, paths, spelled, hydra), *spelled]


def sweep_overrides(overrides: list[Override], hydra: Any, config_name: str) -> list[str]:
    """The overrides of a sweep; each run sees its own values again through `hydra_overrides`.

    Args:
        overrides: As typed.
        hydra: The Hydra object of the search path.
        config_name: The composed file.
    """
    groups, values = split_overrides(overrides, hydra, config_name)
    return [*groups, *(_spelled(override, override.key, hydra) for override in values)]


def split_overrides(overrides: list[Override], hydra: Any, config_name: str | None) -> tuple[list[str], list[Override]]:
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
        elif override.value and override.value.lstrip("-")[:1].isdigit():
            options = ", ".join(loader.get_group_options(override.key.partition("@")[0]))
            raise ConfigError(f"{override.text}: expected a file of conf/{override.key}. Options: {options}.")
        else:  # `+` where no defaults list names the group, whichever way it was typed
            groups.append(f"{'' if override.key in chosen else '+'}{override.key}={override.value}")
    return groups, values


def _spelled(override: Override, path: str, hydra: Any) -> str:
    if override.deletes:
        return f"~{path}"
    text = f"++{path}={override.value}"
    if not override.is_option:
        return text
    try:  # `--key 'any text'` need not know Hydra's quoting
        _value(text, hydra)
    except HydraException:
        return f"++{path}={json.dumps(override.value)}"
    return text


def _value(text: str, hydra: Any) -> Any:
    return OverridesParser.create(config_loader=hydra.config_loader).parse_overrides([text])[0].value()


def _through_class_nodes(tree: Any, key: str) -> str:
    path: list[str] = []
    node = tree
    for part in key.split("."):
        if isinstance(node, dict) and "init_args" in node and part not in ("class_path", "init_args", "dict_kwargs"):
            path.append("init_args")
            node = node["init_args"]
        path.append(part)
        node = node.get(part) if isinstance(node, dict) else None
    return ".".join(path)


def _deletions(
    base: DictConfig, tree: Any, values: list[Override], paths: list[str], spelled: list[str], hydra: Any
) -> list[str]:
    """`~node.key` for what belongs to kinds that the values replace."""
    changes: dict[str, Any] = {}
    for override, path, text in zip(values, paths, spelled, strict=True):
        names_kind = path.rpartition(".")[2] in KIND_KEYS
        if not override.deletes and (names_kind or (override.value or "").lstrip().startswith("{")):
            _set(changes, path, _value(text, hydra))
    if not changes:
        return []
    start_afresh(base, changes)
    return [f"~{path}" for path in _gone(tree, OmegaConf.to_container(base, resolve=False))]


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for part in parents:
        tree = tree.setdefault(part, {})
    tree[last] = value


def _gone(before: Any, after: Any, path: str = "") -> list[str]:
    if not isinstance(before, dict) or not isinstance(after, dict):
        return []
    gone = []
    for name, value in before.items():
        where = f"{path}.{name}" if path else str(name)
        gone += _gone(value, after[name], where) if name in after else [where]
    return gone
