"""A config file and overrides to one plain dictionary, by Hydra's compose API. No torch here."""

import difflib
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra import compose as hydra_compose
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

import lmstack
from lmstack.cli.args import Arguments
from lmstack.cli.failures import ConfigError
from lmstack.cli.kinds import KindAwareLoader
from lmstack.cli.overrides import hydra_overrides
from lmstack.cli.ownership import prefer_typed_length, refuse_two_owners
from lmstack.cli.resolvers import register_resolvers

TOP_LEVEL = (
    "stage",
    "vars",
    "seed_everything",
    "model",
    "data",
    "trainer",
    "callbacks",
    "logger",
    "ckpt_path",
    "overwrite",
    "supervise",
    "cluster",
)


@dataclass
class Composition:
    """A composed config.

    Attributes:
        values: Everything, interpolations resolved.
        run_folder: `trainer.default_root_dir` before interpolations were resolved.
    """

    values: dict[str, Any]
    run_folder: str | None


def compose(arguments: Arguments) -> Composition:
    """Compose a training config and check what needs no signatures.

    Args:
        arguments: The command line.

    Raises:
        ConfigError: A file, group option, key or value is wrong; the message says which and what would be right.
    """
    if arguments.config is None:
        raise ConfigError("no config: name one with --config, such as --config conf/pretrain.yaml")
    raw, values = compose_values(arguments, top_level=TOP_LEVEL)
    for group in ("callbacks", "logger"):
        if isinstance(values.get(group), dict):
            values[group] = {name: _flat(node) for name, node in values[group].items()}
    prefer_typed_length(values, {override.key for override in arguments.overrides})
    refuse_two_owners(values)
    return Composition(values, (raw.get("trainer") or {}).get("default_root_dir"))


def compose_values(
    arguments: Arguments, *, top_level: tuple[str, ...] | None = None, text_keys: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compose a config, or only overrides where no file is named.

    Args:
        arguments: The command line.
        top_level: The keys there may be at the top; None does not check.
        text_keys: Keys whose values are text as typed, whatever Hydra's grammar, a group of that name or an
            interpolation makes of it.

    Returns:
        The values before and after interpolations were resolved.

    Raises:
        ConfigError: A file, group option, key or value is wrong.
    """
    root = Path("conf").resolve() if Path("conf").is_dir() else packaged_conf()
    name: str | None = None
    if arguments.config is not None:
        root, name = locate(arguments.config)
    register_resolvers()
    with explained(arguments.config or "command line"), search_path(root) as hydra:
        parsed = [override for override in arguments.overrides if override.key not in text_keys]
        config = hydra_compose(name, hydra_overrides(parsed, hydra, name))
        texts = {o.key: None if o.value == "null" else o.value for o in arguments.overrides if o.key in text_keys}
        with open_dict(config):
            for key, text in texts.items():  # other values may refer to it
                config[key] = _escaped(text)
        raw = _plain(OmegaConf.to_container(config, resolve=False))
        if top_level is not None:
            refuse_unknown_top_level(raw, top_level, arguments)
        missing = sorted(OmegaConf.missing_keys(config) - texts.keys())
        if missing:
            raise ConfigError("\n".join(f"{key}: required, not given. Set {key}=..." for key in missing))
        return raw | texts, _plain(OmegaConf.to_container(config, resolve=True)) | texts


def _escaped(text: str | None) -> str | None:
    """`${` as OmegaConf writes it where it is no interpolation: backslashes before it count double."""
    return None if text is None else re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def _flat(node: Any) -> Any:
    """`{class_path, init_args: {key: ..}}` as `{class_path, key: ..}`; a key beside `init_args` wins."""
    if not isinstance(node, dict) or not isinstance(node.get("init_args"), dict):
        return node
    return {**node["init_args"], **{key: value for key, value in node.items() if key != "init_args"}}


def _plain(container: Any) -> dict[str, Any]:
    return {str(key): value for key, value in container.items()}


def locate(config: str) -> tuple[Path, str]:
    """The folder that is searched and the name of the file in it.

    The folder is the nearest parent called `conf`, or else the one that holds the file.

    Args:
        config: Path of a YAML file.

    Raises:
        ConfigError: There is no such file.
    """
    path = Path(config)
    if not path.is_file():
        packaged = packaged_conf() / path.name
        if path.parent.name != "conf" or path.exists() or not packaged.is_file():
            near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
            hint = f" Did you mean {path.parent / near[0]}?" if near else ""
            raise ConfigError(f"{config}: {'is a folder' if path.is_dir() else 'no such file'}.{hint}")
        path = packaged  # installed as a wheel, with no conf folder here
    path = path.resolve()
    root = next((folder for folder in path.parents if folder.name == "conf"), path.parent)
    return root, path.relative_to(root).with_suffix("").as_posix()


def packaged_conf() -> Path:
    """The `conf` folder that comes with lmstack: inside the wheel, or beside `src` in a checkout."""
    package = Path(lmstack.__file__).resolve().parent
    return package / "conf" if (package / "conf").is_dir() else package.parents[1] / "conf"


@contextmanager
def search_path(root: Path) -> Iterator[Hydra]:
    """Hydra with `root` before the packaged `conf` folder.

    Args:
        root: Folder whose files win.
    """
    version.setbase("1.3")
    GlobalHydra.instance().clear()
    path = create_config_search_path(str(root))
    if packaged_conf() != root:
        path.prepend("lmstack", f"file://{packaged_conf()}", anchor="schema")
    try:
        hydra = Hydra(task_name="lmstack", config_loader=KindAwareLoader(path))
        GlobalHydra.instance().initialize(hydra)
        yield hydra
    finally:
        GlobalHydra.instance().clear()


@contextmanager
def explained(config: str) -> Iterator[None]:
    """Say Hydra's, OmegaConf's and YAML's errors in one line.

    Args:
        config: The composed file.

    Raises:
        ConfigError: In place of theirs.
    """
    try:
        yield
    except MissingConfigException as error:
        raise ConfigError(_no_such_option(error)) from error
    except OverrideParseException as error:
        detail = str(error.message).splitlines()[0]
        raise ConfigError(f"cannot read {error.override!r}: {detail}. Quote the value: 'key=\"...\"'") from error
    except (HydraException, OmegaConfBaseException) as error:
        if ours := _ours_behind(error):
            raise ours from None
        key = getattr(error, "full_key", None)
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(f"{key or config}: {first.strip()}") from error
    except RecursionError as error:
        raise ConfigError(
            f"{config}: its defaults lead back to itself. Name the file other than those in its defaults list."
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{mark.name}, line {mark.line + 1}" if mark else config
        raise ConfigError(f"{place}: not valid YAML: {getattr(error, 'problem', error)}") from error


def _ours_behind(error: BaseException) -> ConfigError | None:
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, ConfigError):
        behind = behind.__cause__ or behind.__context__
    return behind


def _no_such_option(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    options = list(error.options or [])
    if not options:
        return f"{error.missing_cfg_file}: {str(error).splitlines()[0]}"
    near = difflib.get_close_matches(option, options, 1)
    return (
        f"{group}={option}: no such option."
        + (f" Did you mean {near[0]}?" if near else "")
        + (f" Options of {group}: {', '.join(options)}.")
    )


def refuse_unknown_top_level(config: dict[str, Any], top_level: tuple[str, ...], arguments: Arguments) -> None:
    """Refuse keys that nobody reads.

    Args:
        config: The composed config.
        top_level: The keys there are.
        arguments: The command line, for the words that were typed.

    Raises:
        ConfigError: A key at the top level is unknown.
    """
    for key, value in config.items():
        if key in top_level:
            continue
        typed = next((o for o in arguments.overrides if o.key.partition(".")[0].partition("/")[0] == key), None)
        name, given = (typed.key, typed.value) if typed else (key, value)
        near = difflib.get_close_matches(key, top_level, 1)
        hint = f"Did you mean {near[0]}{name[len(key) :]}?" if near else f"Keys: {', '.join(top_level)}."
        raise ConfigError(f"{name}: no such key (value {given!r}). {hint}")
