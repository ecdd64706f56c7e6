"""What `${...}` can say in a config."""

import json
import os
import time
from pathlib import Path

from omegaconf import OmegaConf

from lmstack.cli.failures import ConfigError

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
        corpus: Folder that `lmstack data build` wrote.

    Raises:
        ConfigError: There is no manifest, or it is not one.
    """
    if "://" in corpus:
        import fsspec  # type: ignore[import-untyped]

        with fsspec.open(f"{corpus.rstrip('/')}/manifest.json") as file:
            text = file.read().decode()
    else:
        path = Path(corpus, "manifest.json")
        if not path.is_file():
            state = "unfinished (it has no manifest.json)" if path.parent.is_dir() else "not there"
            raise ConfigError(
                f"data.path: the corpus {corpus!r} is {state}. Build it with `lmstack data build`, or set data.path."
            )
        text = path.read_text()
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
