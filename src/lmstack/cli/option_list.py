"""Every key of a training config, with type, default and meaning, as read from the signatures."""

import dataclasses
import sys
import textwrap
import typing
from collections.abc import Iterator
from typing import Any, Literal

from lmstack.cli.signatures import REQUIRED, Parameter, kinds, members, signature_of, type_name
from lmstack.cli.stage_table import STAGES, load_stage

WIDTH = 112
_KEY_WIDTH = 46


def option_list() -> str:
    """The list, a paragraph for each of model, data and trainer."""
    from lightning.pytorch import Trainer

    from lmstack.cli.ownership import OWNED_ELSEWHERE

    lines: list[str] = []
    for name in STAGES:
        stage = load_stage(name)
        for key, owner in (("model", stage.model), ("data", stage.data)):
            lines += [f"{key}: {owner.__name__} (stage: {name})", *entries(signature_of(owner).parameters, key), ""]
    trainer = signature_of(Trainer).parameters
    ours = {name: parameter for name, parameter in trainer.items() if name not in OWNED_ELSEWHERE}
    lines += ["trainer: lightning.pytorch.Trainer", *entries(ours, "trainer"), ""]
    lines += ["callbacks.<name>, logger.<name>: {class_path: package.Class, key: value ...}", ""]
    lines += _callback_lines()
    return "\n".join(lines)


def entries(parameters: dict[str, Parameter], prefix: str, note: str = "") -> Iterator[str]:
    """A few lines for each key, and for the keys below it.

    Args:
        parameters: Keys of one level.
        prefix: What stands before them.
        note: The kind they belong to.
    """
    for name, parameter in parameters.items():
        key = f"{prefix}.{name}" if prefix else name
        if note and name == "kind":
            continue
        yield from _entry(key, parameter, note)
        if choices := kinds(parameter.hint):
            for kind, config in choices.items():
                yield from entries(signature_of(config).parameters, key, f"[{kind}] ")
        else:
            for config in _dataclasses(parameter.hint):
                yield from entries(signature_of(config).parameters, key)


def _dataclasses(hint: Any) -> list[type]:
    return [typing.cast(type, member) for member in members(hint) if dataclasses.is_dataclass(member)]


def _entry(key: str, parameter: Parameter, note: str) -> Iterator[str]:
    choices = kinds(parameter.hint)
    if choices:
        key, kind = f"{key}.kind", " | ".join(choices)
    elif _dataclasses(parameter.hint):
        return
    else:
        kind = _choices(parameter.hint)
    default = " (required)" if parameter.default is REQUIRED else f" = {_plain(parameter.default)}"
    head = f"  {key}"
    body = f"{note}{kind}{default}." + (f" {parameter.text}" if parameter.text else "")
    indent = " " * _KEY_WIDTH
    if len(head) >= _KEY_WIDTH - 1:
        yield head
        head = ""
    yield textwrap.fill(
        body, WIDTH, initial_indent=f"{head:{_KEY_WIDTH}}", subsequent_indent=indent, break_on_hyphens=False
    )


def _choices(hint: Any) -> str:
    names = []
    for member in members(hint):
        if typing.get_origin(member) is Literal:
            names += [str(arg) for arg in typing.get_args(member)]
        else:
            names.append(type_name(member))
    return " | ".join(dict.fromkeys(names)) if len(names) < 12 else "see Lightning's documentation"


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(getattr(value, "kind", value))


def _callback_lines() -> list[str]:
    import lmstack.callbacks as callbacks

    lines = []
    for name in callbacks.__all__:
        found = getattr(callbacks, name)
        summary = (found.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
        head = f"  lmstack.callbacks.{name:20} "
        lines.append(head + textwrap.shorten(summary, WIDTH - len(head), placeholder=" ..."))
    return lines


def main() -> None:
    """Print the list."""
    from lmstack.cli.lean_imports import import_lightning

    import_lightning({})
    sys.stdout.write(option_list())


if __name__ == "__main__":
    main()
