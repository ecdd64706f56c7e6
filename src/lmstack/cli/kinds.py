"""A change of `kind` starts its node afresh.

`positions: {kind: rotary, theta: 500000}` and a later file or override that says `kind: alibi`: theta belongs to the
kind that left, so it goes with it. Where `kind` only names one field among others, as in `norm`, nothing goes.
"""

import sys
from collections.abc import Iterator
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf, flag_override, open_dict
from omegaconf.errors import OmegaConfBaseException

KIND_KEYS = ("kind", "class_path")


class KindAwareLoader(ConfigLoaderImpl):
    """Hydra's loader, for files of a defaults list that change a kind."""

    def _compose_config_from_defaults_list(self, defaults: Any, repo: Any) -> Any:
        config = OmegaConf.create()
        with flag_override(config, "no_deepcopy_set_nodes", True):
            for default in defaults:
                loaded = self._load_single_config(default=default, repo=repo).config
                start_afresh(config, loaded)
                try:
                    config.merge_with(loaded)
                except OmegaConfBaseException as error:
                    raise ConfigCompositionException(f"In '{default.config_path}': {error}") from error
        _strip_defaults_lists(config)
        return config


def start_afresh(config: Any, later: Any) -> None:
    """Drop what belongs to kinds that `later` replaces.

    Args:
        config: Composed so far; changed in place.
        later: What is about to be laid over it.
    """
    old = OmegaConf.to_container(config, resolve=False)
    new = OmegaConf.to_container(later, resolve=False) if isinstance(later, DictConfig) else later
    assert isinstance(old, dict)
    for path, key in list(_changed_kinds(old, new)):
        node = OmegaConf.select(config, path)
        dropped = sorted(set(node) - {key})
        if dropped and (key == "class_path" or _is_union(old, path)):
            with open_dict(node):
                for name in dropped:
                    del node[name]


def _changed_kinds(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return
    for key in KIND_KEYS:
        if key in old and key in new and old[key] != new[key]:
            yield path, key
            return
    for name in new:
        yield from _changed_kinds(old.get(name), new[name], f"{path}.{name}" if path else str(name))


def _is_union(config: dict[Any, Any], path: str) -> bool:
    if "lightning" not in sys.modules:  # only signatures can tell, and reading them takes torch and Lightning
        from lmstack.cli.lean_imports import import_lightning

        import_lightning(config)
    from lmstack.cli.signatures import is_union

    return is_union(config, path)


def _strip_defaults_lists(config: Any) -> None:
    if not isinstance(config, DictConfig) or config._is_missing() or config._is_none():
        return
    with flag_override(config, ["readonly", "struct"], False):
        if config._get_flag("HYDRA_REMOVE_TOP_LEVEL_DEFAULTS"):
            config._set_flag("HYDRA_REMOVE_TOP_LEVEL_DEFAULTS", None)
            config.pop("defaults", None)
        for _, value in config.items_ex(resolve=False):
            _strip_defaults_lists(value)
