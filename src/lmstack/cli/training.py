"""A composed config to a LightningCLI run: jsonargparse checks every key against the signatures, and builds."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lmstack.cli.compose import Composition
from lmstack.cli.explain import condensed, mistakes
from lmstack.cli.failures import ConfigError
from lmstack.cli.launch import SUPERVISED
from lmstack.cli.ownership import given_max_steps, refuse_no_length
from lmstack.cli.quiet import after_lightning
from lmstack.cli.run_folder import CHECKPOINTS, refuse_used_folder, remove_old_run, resolve_checkpoint
from lmstack.cli.saved_config import SaveConfig, saved_config
from lmstack.cli.stage_table import Stage, load_stage
from lmstack.cli.strategy_choice import resolve_strategy
from lmstack.models.checkpoint_folder import folder_name

RESULT = "LMSTACK_RESULT"
_PRIVATE = ("stage", "vars", "overwrite", "supervise", "hydra", "callbacks", "logger")


def train(command: str, composition: Composition) -> int:
    """Run one training command.

    Args:
        command: `fit`, `validate`, `test` or `predict`.
        composition: The composed config.

    Returns:
        The exit status.

    Raises:
        ConfigError: The config cannot run.
    """
    after_lightning()
    config = composition.values
    if not (config.get("trainer") or {}).get("default_root_dir"):
        raise ConfigError("trainer.default_root_dir: required, not given. Set it to the folder of the run.")
    checkpoint = resolve_checkpoint(command, config)
    resolve_strategy(config, checkpoint)
    is_first_process = rank_zero_only.rank in (None, 0)
    if command == "fit":
        refuse_no_length(config)
        if is_first_process:
            _check_start(composition, checkpoint)
    cli = _build(command, composition, checkpoint)
    folder = Path(config["trainer"]["default_root_dir"])
    if command == "fit" and is_first_process and checkpoint is None and config.get("overwrite"):
        remove_old_run(folder)
    with _nothing_left_of_a_false_start(cli, folder, is_first_process):
        exit_status = _run(cli)
    if checkpoint is not None and command == "fit" and checkpoint.name == folder_name(cli.trainer.global_step):
        print(f"nothing left to do: the run ends at step {cli.trainer.global_step}", file=sys.stderr)
    if exit_status == 0:
        _write_result(cli.trainer, config)
    return exit_status


def _check_start(composition: Composition, checkpoint: Path | None) -> None:
    """Say where training starts, and refuse to start over another run."""
    folder = Path(composition.values["trainer"]["default_root_dir"])
    if checkpoint is None or folder.resolve() not in checkpoint.resolve().parents:
        refuse_used_folder(composition)
    if checkpoint is not None:
        print(f"going on from {checkpoint}", file=sys.stderr)
    elif composition.values.get("ckpt_path") == "last":
        print("ckpt_path=last: no checkpoint yet, starting at step 0", file=sys.stderr)


def _build(command: str, composition: Composition, checkpoint: Path | None) -> "RunCLI":
    config = composition.values
    arguments = lightning_arguments(config) | {"ckpt_path": str(checkpoint) if checkpoint else None}
    if command != "fit":  # the metrics of the run are not touched; the result is printed
        arguments["trainer"]["logger"] = False
    try:
        return RunCLI(command, load_stage(config["stage"]), composition, arguments)
    except (ValueError, MisconfigurationException) as error:  # a constructor says what the types cannot
        raise ConfigError(str(error).strip()) from error


def _run(cli: "RunCLI") -> int:
    try:
        cli.run_command()
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into exit status 1
            raise KeyboardInterrupt from None
        return error.code if isinstance(error.code, int) else 0
    return 0


@contextmanager
def _nothing_left_of_a_false_start(cli: "RunCLI", folder: Path, is_first_process: bool) -> Iterator[None]:
    """Remove a folder that this run made, when it fails before its first step."""
    is_new = not folder.exists()
    try:
        yield
    except BaseException:
        if is_new and is_first_process and cli.trainer.global_step == 0 and not any(folder.glob(f"{CHECKPOINTS}/*")):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def lightning_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """The composed config in LightningCLI's words.

    Args:
        config: The composed config.
    """
    arguments = {key: value for key, value in config.items() if key not in _PRIVATE}
    trainer = dict(arguments.get("trainer") or {})
    steps = given_max_steps(config)
    # With steps given the loader has no end of its own; with tokens given, its one pass is the run.
    trainer |= {"max_steps": -1, "max_epochs": 1} if steps is None else {"max_steps": steps, "max_epochs": -1}
    trainer["check_val_every_n_epoch"] = None  # val_check_interval counts optimizer steps
    trainer.setdefault("use_distributed_sampler", False)  # the data modules share rows out themselves
    trainer.setdefault("enable_model_summary", False)  # the plan says more
    if "strategy" in trainer:
        trainer["strategy"] = class_node(trainer["strategy"])
    trainer["callbacks"] = class_nodes(config.get("callbacks"))
    trainer["logger"] = class_nodes(config.get("logger")) or False
    return arguments | {"trainer": trainer}


def class_nodes(mapping: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A mapping of named class nodes to the list Lightning takes; null ones are left out.

    Args:
        mapping: `{name: {class_path: .., key: ..}}`.
    """
    return [class_node(node) for node in (mapping or {}).values() if node]


def class_node(node: Any) -> Any:
    """`{class_path, key: ..}` as `{class_path, init_args: {key: ..}}`.

    Args:
        node: A class node, or something else, which is returned as it is.
    """
    if not isinstance(node, dict) or "class_path" not in node:
        return node
    own = {key: value for key, value in node.items() if key not in ("class_path", "init_args", "dict_kwargs")}
    init_args = {key: class_node(value) for key, value in {**(node.get("init_args") or {}), **own}.items()}
    return {key: node[key] for key in ("class_path", "dict_kwargs") if key in node} | {"init_args": init_args}


class _Parser(LightningArgumentParser):
    """Raises instead of printing its usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"exit_on_error": False, "allow_abbrev": False} | kwargs)


class RunCLI(LightningCLI):
    """LightningCLI for one command of one stage, fed with a composed config.

    Args:
        command: `fit`, `validate`, `test` or `predict`.
        stage: Its classes.
        composition: The composed config.
        arguments: The same in LightningCLI's words.
    """

    def __init__(self, command: str, stage: Stage, composition: Composition, arguments: dict[str, Any]) -> None:
        self.command = command
        self.composition = composition
        super().__init__(
            stage.model,
            stage.data,
            args={"subcommand": command, command: arguments},
            parser_class=_Parser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=None,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the one that runs: each parser takes time to build."""
        return {self.command: super().subcommands()[self.command]}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and explain a refusal.

        Args:
            parser: The parser.
            args: The config, by subcommand.

        Raises:
            ConfigError: A key or value is wrong.
        """
        try:
            self.config = parser.parse_object(args)
        except ArgumentError as error:
            raise ConfigError("\n".join(mistakes(self.composition.values)) or condensed(str(error))) from error

    def _parse_ckpt_path(self) -> None:
        """Nothing: the checkpoint's hyper-parameters must not replace what was asked for."""

    def instantiate_classes(self) -> None:
        """Build everything. Weights that start at random and are cut over a mesh are drawn when they are cut."""
        from lmstack.models.transformer import deferred_weights

        values = self.composition.values
        strategy = (values.get("trainer") or {}).get("strategy")
        is_cut = isinstance(strategy, dict) and str(strategy.get("class_path")).endswith(".MeshStrategy")
        starts_at_random = not (values.get("model") or {}).get("init_from")
        with deferred_weights() if is_cut and starts_at_random else nullcontext():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The trainer, with what every run needs.

        Args:
            **kwargs: Further arguments.
        """
        given = self._get(self.config_init, "trainer")
        callbacks = [*(given["callbacks"] or [])]
        plugins = given["plugins"] or []
        own = sys.modules.get("lmstack.callbacks")
        if own and any(isinstance(callback, own.Checkpointing) for callback in callbacks):
            plugins = [*(plugins if isinstance(plugins, list) else [plugins]), own.FolderCheckpointIO()]
        given = {**given, "plugins": plugins or None}
        if self.command == "fit":
            from lmstack.cli.announce import Announce

            callbacks.insert(0, Announce(self.composition.values))
            if SUPERVISED in os.environ:
                from lmstack.callbacks.heartbeat import Heartbeat

                callbacks.append(Heartbeat())
            parsed: Namespace = self.config[self.command]
            callbacks.append(SaveConfig(saved_config(self.composition, self._parser(self.command), parsed)))
        return pl.Trainer(**{**given, "callbacks": callbacks, **kwargs})

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing yet: `run_command` does, once the folder is ready."""

    def run_command(self) -> None:
        """Train, validate, test or predict."""
        super()._run_subcommand(self.command)


def _write_result(trainer: pl.Trainer, config: dict[str, Any]) -> None:
    """The final metrics, where a sweep asked for them."""
    path = os.environ.get(RESULT)
    if not path or not trainer.is_global_zero:
        return
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    wanted = (config.get("vars") or {}).get("objective")
    names = [wanted] if wanted else ["val/loss", "train/loss"]
    objective = next((metrics[name] for name in names if name in metrics), None)
    Path(path).write_text(json.dumps({"objective": objective, "metrics": metrics}, indent=1))
