"""Where a run lives: which folder, which checkpoint it goes on from, and what may be overwritten."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from lmstack.cli.compose import Composition
from lmstack.cli.failures import ConfigError
from lmstack.cli.resolvers import RUN_ID

CHECKPOINTS = "checkpoints"
# What a run writes; `overwrite=true` removes these and nothing else.
WRITTEN = (
    CHECKPOINTS,
    "config*.yaml",
    "run.json",
    "metrics.csv",
    "samples.jsonl",
    "spikes.jsonl",
    "events.out.tfevents.*",
    "heartbeats",
    "post_mortem",
    "restarts.jsonl",
    "excluded_hosts.txt",
    "control",
)
_RUN_ID = re.compile(r"\$\{run_id:\}")


def has_run_id(composition: Composition) -> bool:
    """Whether the folder's name is new at each start.

    Args:
        composition: The composed config.
    """
    return bool(composition.run_folder and _RUN_ID.search(composition.run_folder))


def choose_run_to_continue(composition: Composition) -> bool:
    """With `${run_id:}` in the folder's name, let `ckpt_path=last` mean the newest such run with a checkpoint.

    Sets the run id in the environment, so that the config composed again names that run's folder.

    Args:
        composition: The composed config.

    Returns:
        Whether the config must be composed again.
    """
    own = os.environ.get(RUN_ID)
    if own is None or composition.values.get("ckpt_path") != "last" or not has_run_id(composition):
        return False
    folder = str(composition.values["trainer"]["default_root_dir"])
    before, _, after = folder.rpartition(own)
    found = [path for path in Path().glob(f"{before}*{after}") if list(path.glob(f"{CHECKPOINTS}/*"))]
    for path in sorted(found, key=lambda p: (p / CHECKPOINTS).stat().st_mtime, reverse=True):
        if newest_checkpoint(path) is not None:
            os.environ[RUN_ID] = str(path)[len(before) : len(str(path)) - len(after)]
            return os.environ[RUN_ID] != own
    return False


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run that is whole.

    Args:
        folder: The run folder.
    """
    from lmstack.models.checkpoint_folder import newest_valid_checkpoint

    return newest_valid_checkpoint(folder)


def resolve_checkpoint(command: str, config: dict[str, Any]) -> Path | None:
    """The checkpoint folder that `ckpt_path` stands for: `last`, a run folder or a checkpoint folder.

    Args:
        command: `fit`, `validate`, `test` or `predict`.
        config: The composed config.

    Raises:
        ConfigError: There is no such checkpoint.
    """
    given = config.get("ckpt_path")
    if given is None:
        return None
    if given == "last":
        folder = Path(config["trainer"]["default_root_dir"])
        found = newest_checkpoint(folder)
        if found is None and command != "fit":
            raise ConfigError(f"ckpt_path=last: {folder} has no checkpoint yet. Train one with `lmstack fit` first.")
        return found
    path = Path(given)
    if not given or not path.exists():
        raise ConfigError(f"ckpt_path: {given!r} is not there. Name a checkpoint or run folder, or ckpt_path=last.")
    if (path / CHECKPOINTS).is_dir():
        found = newest_checkpoint(path)
        if found is None:
            raise ConfigError(f"ckpt_path: the run {given!r} has no checkpoint that is whole.")
        return found
    return path


def refuse_used_folder(composition: Composition) -> None:
    """Refuse to start a new run over another one's checkpoints.

    Args:
        composition: The composed config.

    Raises:
        ConfigError: The folder holds checkpoints, and neither `ckpt_path` nor `overwrite` is given.
    """
    config = composition.values
    folder = Path(config["trainer"]["default_root_dir"])
    if not any((folder / CHECKPOINTS).glob("step-*")) or config.get("overwrite"):
        return  # what a killed process left of its first write is not a checkpoint
    other = "vars.name=..." if "vars.name" in (composition.run_folder or "") else "trainer.default_root_dir=..."
    raise ConfigError(
        f"{folder} already holds a run with checkpoints. Go on with ckpt_path=last, choose another folder with "
        f"{other}, or replace the run with overwrite=true."
    )


def remove_old_run(folder: Path) -> None:
    """Delete what an earlier run wrote, and nothing else.

    Args:
        folder: The run folder.
    """
    for pattern in WRITTEN:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
