"""What `lmstack control` and a run say to each other: small files in the run's folder. Standard library only."""

import json
import logging
import os
import stat
import time
from pathlib import Path
from typing import Any

FOLDER = "control"
_REQUEST = ".request.json"
_ANSWER = ".answer.txt"
_SECONDS_BETWEEN_LOOKS = 0.1
_TRUSTED = (0,)  # root may do anything anyway

log = logging.getLogger(__name__)


def send_request(run_folder: Path, request: dict[str, Any]) -> Path:
    """Leave a request where the run looks for it, writable by its sender only.

    Args:
        run_folder: Of the run.
        request: `command`, and what belongs to it.

    Returns:
        The file.
    """
    folder = run_folder / FOLDER
    folder.mkdir(exist_ok=True)
    path = folder / f"{time.time_ns()}-{os.getpid()}{_REQUEST}"
    beside = path.with_suffix(".partial")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(request, file)
    os.replace(beside, path)
    return path


def await_answer(path: Path, seconds: float) -> str | None:
    """What the run says to a request; None, and the request is taken back, when it says nothing.

    Args:
        path: From `send_request`.
        seconds: How long to wait.
    """
    answered = _answer_path(path)
    end = time.monotonic() + seconds
    while True:
        if answered.exists():
            text = answered.read_text()
            answered.unlink()
            return text
        if time.monotonic() >= end:
            path.unlink(missing_ok=True)
            return None
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def take_request(run_folder: Path) -> dict[str, Any] | None:
    """The oldest request, removed from the folder; None when there is none. One that may be forged is refused.

    Args:
        run_folder: Of the run.
    """
    try:
        names = sorted(name for name in os.listdir(run_folder / FOLDER) if name.endswith(_REQUEST))
    except FileNotFoundError:
        return None
    for name in names:
        path = run_folder / FOLDER / name
        try:
            refusal = _why_not(path)
            request = None if refusal else json.loads(path.read_text())
            path.unlink()
        except (OSError, ValueError) as error:  # taken back in this moment, or no JSON
            log.warning("lmstack control: cannot read %s: %s", path, error)
            path.unlink(missing_ok=True)
            continue
        if refusal:
            log.warning("lmstack control: refused %s: %s", path, refusal)
            _write_answer(path, f"refused: {refusal}")
        elif isinstance(request, dict) and isinstance(request.get("command"), str):
            return {**request, "path": str(path)}
    return None


def answer(request: dict[str, Any], text: str) -> None:
    """Say what became of a request.

    Args:
        request: From `take_request`.
        text: What to say.
    """
    _write_answer(Path(request["path"]), text)


def _why_not(path: Path) -> str | None:
    """Why the file may come from somebody else than the run's own user."""
    status = path.lstat()
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
    beside.write_text(text)
    os.replace(beside, _answer_path(path))
