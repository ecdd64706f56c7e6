"""What `${...}` can say in a config."""

import json
import os
import time
from pathlib import Path

from omegaconf import OmegaConf

from lmstack.cli.failures import ConfigError
from lmstack.data.remote import local_copy

RUN_ID = "LMSTACK_RUN_ID"


def register_resolvers() -> None:
    """Make `${run_id:}`, `${vocab_size:folder}`, `${mul:a,b}` and `${div:a,b}` known to OmegaConf."""
    register = OmegaConf.register_new_resolver
    register("run_id", run_id, replace=True)
    register("vocab_size", vocab_size, replace=True)
    register("mul", _multiply, replace=True)
    register("div", _divide, replace=True)


def run_id() -> str:
    """One name for this run in all its processes: the first process exports it before ranks are started."""
    launcher = next((os.environ[n] for n in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID") if os.environ.get(n)), "none")
    fresh = launcher if launcher != "none" else time.strftime("%Y%m%d-%H%M%S")
    return os.environ.setdefault(RUN_ID, fresh)


def vocab_size(corpus: str) -> int:
    """Number of token ids of a prepared corpus, from its manifest.

    Args:
        corpus: Folder that `lmstack data build` wrote, or its URL.

    Raises:
        ConfigError: There is no manifest, or it is not one.
    """
    try:
        text = local_copy(corpus, "manifest.json").read_text()
    except (FileNotFoundError, NotADirectoryError):
        state = "unfinished (it has no manifest.json)" if Path(corpus).is_dir() else "not there"
        raise ConfigError(
            f"data.path: the corpus {corpus!r} is {state}. Build it with `lmstack data build`, or set data.path."
        ) from None
    except OSError as error:
        raise ConfigError(f"data.path: cannot read {corpus}/manifest.json: {error.strerror}.") from error
    except ValueError as error:  # an object store's
        raise ConfigError(f"data.path: {error}") from error
    try:
        return int(json.loads(text)["tokenizer"]["vocab_size"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"data.path: {corpus}/manifest.json is damaged ({error!r}): build it anew.") from error


def _multiply(a: int | float, b: int | float) -> int | float:
    return a * b


def _divide(a: int, b: int) -> int:
    if a % b:
        raise ConfigError(f"${{div:{a},{b}}}: {a} is not a multiple of {b}.")
    return a // b
