"""Command-line overrides in the words Hydra composes with.

Two things are added to Hydra's own grammar. A value may set a key that no file lists, since signatures, not files, say
which keys exist (`++key=value`). And a change of `kind` starts its node afresh.
"""

import json
from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

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
    spelled = [_spelled(override, hydra) for override in values]
    changes = _new_kinds(values, spelled, hydra)
    if not changes:
        return [*groups, *spelled]
    base = compose(config_name, groups)
    before = OmegaConf.to_container(base, resolve=False)
    start_afresh(base, changes)
    gone = _gone(before, OmegaConf.to_container(base, resolve=False))
    return [*groups, *(f"~{path}" for path in gone), *spelled]


def _is_number(value: str | None) -> bool:
    return (value or "").lstrip("-")[:1].isdigit()


def sweep_overrides(overrides: list[Override], hydra: Any, config_name: str) -> list[str]:
    """The overrides of a sweep; each run sees its own values again through `hydra_overrides`.

    Args:
        overrides: As typed.
        hydra: The Hydra object of the search path.
        config_name: The composed file.
    """
    groups, values = split_overrides(overrides, hydra, config_name)
    return [*groups, *(_spelled(override, hydra) for override in values)]


def split_overrides(overrides: list[Override], hydra: Any, config_name: str | None) -> tuple[list[str], list[Override]]:
    """Choices of a file, ready for Hydra, and the rest.

    Args:
        overrides: As typed.
        hydra: The Hydra object of the search path.
        config_name: The composed file.
    """
    loader = hydra.config_loader
    groups: list[str] = []
    values: list[Override] = []
    chosen: dict[str, Any] | None = None
    for override in overrides:
        group = override.key.partition("@")[0]
        if not loader.repository.group_exists(group):
            values.append(override)
        elif override.deletes:
            groups.append(override.text)
        elif _is_number(override.value) and override.value not in (options := loader.get_group_options(group)):
            raise ConfigError(f"{override.text}: expected a file of conf/{group}. Options: {', '.join(options)}.")
        else:
            if chosen is None:
                chosen = loader.compute_defaults_list(config_name, [], RunMode.RUN).overrides.known_choices
            # `+` where no defaults list names the group, whichever way it was typed
            groups.append(f"{'' if override.key in chosen else '+'}{override.key}={override.value}")
    return groups, values


def _spelled(override: Override, hydra: Any) -> str:
    if override.deletes:
        return f"~{override.key}"
    text = f"++{override.key}={override.value}"
    if not override.is_option:
        return text
    try:  # `--key 'any text'` need not know Hydra's quoting
        _value(text, hydra)
    except HydraException:
        return f"++{override.key}={json.dumps(override.value)}"
    return text


def _value(text: str, hydra: Any) -> Any:
    return OverridesParser.create(config_loader=hydra.config_loader).parse_overrides([text])[0].value()


def _new_kinds(values: list[Override], spelled: list[str], hydra: Any) -> dict[str, Any]:
    """The values that may name a kind: `node.kind=..` and `node={kind: .., ..}`."""
    changes: dict[str, Any] = {}
    for override, text in zip(values, spelled, strict=True):
        names_kind = override.key.rpartition(".")[2] in KIND_KEYS
        if not override.deletes and (names_kind or (override.value or "").lstrip().startswith("{")):
            _set(changes, override.key, _value(text, hydra))
    return changes


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
