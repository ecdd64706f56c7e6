"""The command line as given: config files, overrides, flags. Standard library only."""

import re
from dataclasses import dataclass, field

from lmstack.cli.failures import ConfigError

# Hydra's grammar of an override: [~ | + | ++] key [@package] [=value]; a key is a group `a/b` or a dotted path `a.b`.
_OVERRIDE = re.compile(r"(?P<sign>~|\+{0,2})(?P<key>[A-Za-z_][\w./\-]*(@[\w.\-:]*)?)(=(?P<value>.*))?", re.DOTALL)


@dataclass(frozen=True)
class Override:
    """One change of the composed config.

    Attributes:
        text: As typed.
        key: A group `a/b` or a dotted path `a.b`, perhaps with `@package`.
        value: What follows `=`; None where there is none.
        deletes: Whether it drops the key: `~key`.
        is_option: Whether it was spelt `--key value` or `--key=value`.
    """

    text: str
    key: str
    value: str | None
    deletes: bool = False
    is_option: bool = False


@dataclass
class Arguments:
    """What was asked for.

    Attributes:
        config: The file that is composed; None where none was named.
        overrides: Changes in the order given.
        is_sweep: One run for each combination of comma-separated values.
        wants_help: `--help` was given.
    """

    config: str | None = None
    overrides: list[Override] = field(default_factory=list)
    is_sweep: bool = False
    wants_help: bool = False


def parse_arguments(argv: list[str]) -> Arguments:
    """Read a command line.

    Args:
        argv: What follows the command's name.

    Raises:
        ConfigError: Something is neither an option nor an override, or a key is given twice.
    """
    arguments, words = Arguments(), iter(argv)
    for word in words:
        name, has_value, value = word.partition("=")
        if word in ("-h", "--help"):
            arguments.wants_help = True
        elif word in ("-m", "--multirun"):
            arguments.is_sweep = True
        elif name in ("-c", "--config"):
            value = value if has_value else next(words, "")
            _set_config(arguments, value)
        elif word.startswith("-"):
            if not has_value:
                value = next(words, "")
                if not value or value.startswith("--"):
                    raise ConfigError(f"{name} needs a value: {name.lstrip('-')}=...")
            key = name.lstrip("-")
            arguments.overrides.append(Override(f"{name} {value}", key, value, is_option=True))
        else:
            arguments.overrides.append(_override(word))
    _refuse_repeated(arguments.overrides)
    return arguments


def _set_config(arguments: Arguments, value: str) -> None:
    if not value:
        raise ConfigError("--config needs a file: --config conf/pretrain.yaml")
    if arguments.config is not None:
        raise ConfigError(
            f"--config is given twice, {arguments.config} and {value}. Name one; others go into its defaults list."
        )
    arguments.config = value


def _override(word: str) -> Override:
    match = _OVERRIDE.fullmatch(word)
    if match is None or (match["value"] is None and match["sign"] != "~"):
        hint = f" A config file follows --config: --config {word}" if word.endswith((".yaml", ".yml")) else ""
        raise ConfigError(f"cannot read {word!r}: expected key=value, ~key or --key value.{hint}")
    return Override(word, match["key"], match["value"], deletes=match["sign"] == "~")


def _refuse_repeated(overrides: list[Override]) -> None:
    seen: dict[str, Override] = {}
    for override in overrides:
        first = seen.setdefault(override.key, override)
        if first is override or (first.value, first.is_option) == (override.value, override.is_option):
            continue
        raise ConfigError(f"{override.key} is given twice, as `{first.text}` and as `{override.text}`. Give it once.")
