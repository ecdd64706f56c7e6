"""Help in an instant: a page written here, the config groups found on disk, and the list of options from a cache.

The list comes from signatures, so making it takes torch. It is made once for each state of the source, and a change of
the source makes it anew. Standard library only.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import lmstack

_ABOUT = {
    "fit": "Train. The run's folder, runs/<vars.name>, gets the config, metrics, checkpoints and samples.",
    "validate": "Loss, perplexity and bits per byte on the validation data, of ckpt_path.",
    "test": "Loss, perplexity and bits per byte on the test data, of ckpt_path.",
    "predict": "A model's predictions, of ckpt_path.",
}
_PAGE = """\
usage: lmstack {command} --config conf/<name>.yaml [key=value ...]

{about}

  model=llama_60m               choose a file of a group      +experiment=no_positions   add one
  model.optimizer.lr=3e-4       set a key, at any depth       ~callbacks.samples         drop one
  model.transformer.positions.kind=alibi                     another kind starts its node afresh
  ckpt_path=last                go on where the run stopped   overwrite=true             replace the run
  -m model.optimizer.lr=1e-4,3e-4 model=llama_5m,llama_20m   a sweep: one run for each combination

groups (conf/<group>/<option>.yaml; yours win over the packaged ones)
{groups}
"""


def show_help(command: str) -> int:
    """Print the help of a training command.

    Args:
        command: Which.

    Returns:
        The exit status.
    """
    print(_PAGE.format(command=command, about=_ABOUT[command], groups=_groups()), flush=True)
    cache = _cache_file()
    if not cache.exists():
        print("(making the list of options, once: a few seconds)\n", flush=True)
        made = subprocess.run(
            [sys.executable, "-m", "lmstack.cli.option_list"], capture_output=True, text=True, check=False
        )
        if made.returncode:
            print(made.stderr, file=sys.stderr)
            return made.returncode
        _write(cache, made.stdout)
    print(cache.read_text(), end="")
    return 0


def _groups() -> str:
    found: dict[str, set[str]] = {}
    for root in (Path("conf"), _packaged_conf()):
        for path in sorted(root.glob("*/*.yaml")):
            found.setdefault(path.parent.name, set()).add(path.stem)
    width = max(map(len, found), default=0)
    return "\n".join(f"  {group:{width}}  {', '.join(sorted(options))}" for group, options in sorted(found.items()))


def _packaged_conf() -> Path:
    package = Path(lmstack.__file__).resolve().parent
    return package / "conf" if (package / "conf").is_dir() else package.parents[1] / "conf"


def _cache_file() -> Path:
    package = Path(lmstack.__file__).resolve().parent
    state = hashlib.sha1(f"{lmstack.__version__} {sys.version}".encode(), usedforsecurity=False)
    for path in sorted(package.rglob("*.py")):
        status = path.stat()
        state.update(f"{path.relative_to(package)} {status.st_mtime_ns} {status.st_size}\n".encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "lmstack")
    return folder / f"options-{state.hexdigest()[:16]}.txt"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob("options-*.txt"):
        stale.unlink(missing_ok=True)
    beside = path.with_suffix(f".{os.getpid()}")
    beside.write_text(text)
    os.replace(beside, path)
