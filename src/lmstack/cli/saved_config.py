"""config.yaml of a run: everything resolved, so that `lmstack fit --config <it>` repeats the run."""

import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import yaml  # type: ignore[import-untyped]
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lmstack.cli.compose import Composition
from lmstack.cli.run_folder import has_run_id
from lmstack.cli.signatures import signature_of

NAME = "config.yaml"
# Set anew by every start from keys that own them.
_DERIVED = ("max_epochs", "check_val_every_n_epoch", "callbacks", "logger")


def saved_config(composition: Composition, parser: LightningArgumentParser, parsed: Namespace) -> dict[str, Any]:
    """The config that repeats a run.

    Args:
        composition: As composed.
        parser: The parser of the command.
        parsed: As parsed, with the defaults of model and data filled in.
    """
    dump = yaml.safe_load(parser.dump(parsed, skip_none=False, skip_validation=True, format="yaml"))
    given = composition.values
    defaults = signature_of(L.Trainer).parameters
    trainer = {
        key: value
        for key, value in dump["trainer"].items()
        if key not in _DERIVED and (key in given["trainer"] or value != defaults[key].default)
    }
    if trainer.get("max_steps") == -1:
        del trainer["max_steps"]
    if composition.run_folder and not has_run_id(composition):
        trainer["default_root_dir"] = composition.run_folder  # so that vars.name=... still moves the run
    folder = str(given["trainer"]["default_root_dir"])
    return {
        "stage": given["stage"],
        "vars": given.get("vars") or {},
        "seed_everything": parsed["seed_everything"],
        "model": dump["model"],
        "data": dump["data"],
        "trainer": trainer,
        "callbacks": _named(given.get("callbacks"), dump["trainer"]["callbacks"] or [], folder),
        "logger": _named(given.get("logger"), dump["trainer"]["logger"] or [], folder),
    }


def _named(given: dict[str, Any] | None, parsed: list[dict[str, Any]], run_folder: str) -> dict[str, Any]:
    names = [name for name, node in (given or {}).items() if node]
    flat = {
        name: {"class_path": node["class_path"], **(node.get("init_args") or {}), **(node.get("dict_kwargs") or {})}
        for name, node in zip(names, parsed, strict=True)
    }
    # What lies in the run folder moves with it.
    return {
        name: {key: "${trainer.default_root_dir}" if value == run_folder else value for key, value in node.items()}
        for name, node in flat.items()
    }


class SaveConfig(L.Callback):
    """Writes `config.yaml` into the run folder when training starts.

    A run that goes on with other values keeps the earlier file as `config.1.yaml`, `config.2.yaml`, ...

    Args:
        config: What to write.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write.

        Args:
            trainer: The trainer.
            pl_module: The stage.
        """
        del pl_module
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            write_config(Path(trainer.default_root_dir), self.config)


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write `config.yaml` whole, keeping an earlier one that differs.

    Args:
        folder: The run folder.
        config: What to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / NAME, yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    if path.exists() and path.read_text() != text:
        for line in differences(yaml.safe_load(path.read_text()), config):
            print(f"other than when the run began: {line}", file=sys.stderr)
        number = next(n for n in range(1, 10**6) if not (folder / f"config.{n}.yaml").exists())
        path.rename(folder / f"config.{number}.yaml")
    beside = folder / f".{NAME}.partial"
    beside.write_text(text)
    os.replace(beside, path)


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Keys whose values differ: `model.optimizer.lr 0.1 -> 0.2`.

    Args:
        old: A config.
        new: Another.
        key: Where both stand, with dots.
    """
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [] if old == new else [f"{key} {old!r} -> {new!r}"]
    return [
        line
        for name in dict.fromkeys([*old, *new])
        for line in differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
    ]
