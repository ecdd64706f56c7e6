"""What `lmstack control` and a run say to each other: small files in the run's folder. Standard library only."""

import json
import logging
import os
import stat
import time
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = "control"
_REQUEST = ".request.json"
_ANSWER = ".answer.txt"
_SECONDS_BETWEEN_LOOKS = 0.1
_MOST_BYTES = 2**20
_TRUSTED = (0,)  # root may do anything anyway

log = logging.getLogger(__name__)


def send_request(run_folder: Path, request: dict[str, Any]) -> Path:
    """Leave a request where the run looks for it, writable by its sender only; root's becomes that of the run's owner.

    Args:
        run_folder: Of the run.
        request: `command`, and what belongs to it.

    Returns:
        The file.
    """
    folder = run_folder / FOLDER
    owner = run_folder.stat() if os.geteuid() == 0 else None
    if not folder.is_dir():
        folder.mkdir()
        if owner is not None:
            os.chown(folder, owner.st_uid, owner.st_gid, follow_symlinks=False)
    path = folder / f"{time.time_ns()}-{os.getpid()}{_REQUEST}"
    beside = path.with_suffix(".partial")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(request, file)
        if owner is not None:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
    os.replace(beside, path)
    return path


def await_answer(path: Path, seconds: float) -> str | None:
    """What the run says to a request; None, and the request is taken back, when it says nothing.

    Args:
        path: From `send_request`.
        seconds: How long to wait.

    Raises:
        TimeoutError: The run has taken the request, and says nothing yet.
    """
    answered = _answer_path(path)
    end = time.monotonic() + seconds
    while True:
        if answered.exists():
            text = answered.read_text()
            answered.unlink()
            return text
        if time.monotonic() < end:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            continue
        try:
            path.unlink()
        except FileNotFoundError:
            if not answered.exists():
                raise TimeoutError(f"{path} was taken and not answered") from None
        else:
            return None


def take_request(run_folder: Path) -> dict[str, Any] | None:
    """The oldest request, removed from the folder; None when there is none. One that may be forged is refused.

    Nothing that somebody puts into the folder ends the run: what cannot be read and removed is left there.

    Args:
        run_folder: Of the run.
    """
    try:
        names = sorted(name for name in os.listdir(run_folder / FOLDER) if name.endswith(_REQUEST))
    except FileNotFoundError:
        return None
    except OSError as error:
        _warn_once(f"lmstack control: cannot look for requests: {error}")
        return None
    for name in names:
        path = run_folder / FOLDER / name
        try:
            text, refusal = _contents(path)
            path.unlink()
        except FileNotFoundError:  # taken back in this moment
            continue
        except OSError as error:
            _warn_once(f"lmstack control: cannot take a request: {error}")
            continue
        request = None if refusal else _parsed(text)
        if request is not None:
            return {**request, "path": str(path)}
        refusal = refusal or "it is no command."
        log.warning("lmstack control: refused %s: %s", path, refusal)
        _write_answer(path, f"refused: {refusal}")
    return None


def answer(request: dict[str, Any], text: str) -> None:
    """Say what became of a request.

    Args:
        request: From `take_request`.
        text: What to say.
    """
    _write_answer(Path(request["path"]), text)


def _contents(path: Path) -> tuple[str, str | None]:
    """The text of a file, and why it may come from somebody else than the run's own user."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return "", "it is no regular file."
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:  # judged by what is open: another file may be put in its place
        return os.read(descriptor, _MOST_BYTES).decode(errors="replace"), _why_not(os.fstat(descriptor))
    finally:
        os.close(descriptor)


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        request = json.loads(text)
    except ValueError:
        return None
    return request if isinstance(request, dict) and isinstance(request.get("command"), str) else None


def _why_not(status: os.stat_result) -> str | None:
    if not stat.S_ISREG(status.st_mode):
        return "it is no regular file."
    if status.st_uid not in (os.geteuid(), *_TRUSTED):
        return f"it belongs to user {status.st_uid}, and the run to user {os.geteuid()}."
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write it (mode {stat.S_IMODE(status.st_mode):o})."
    return None


def _answer_path(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(_REQUEST) + _ANSWER)


def _write_answer(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".partial")
    try:
        beside.write_text(text)
        os.replace(beside, _answer_path(path))
    except OSError as error:
        log.warning("lmstack control: cannot answer %r: %s", text, error)


@cache
def _warn_once(text: str) -> None:
    log.warning(text)
