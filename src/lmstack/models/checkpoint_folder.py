"""Checkpoint folders that are whole or absent: written beside, synced, renamed; every file's hash in a manifest."""

import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
PREFIX = "step-"
_PARTIAL = ".partial-"
_REPLACED = f"{_PARTIAL}replaced-"
_SET_ASIDE = "set-aside-"

Entries = dict[str, dict[str, Any]]

log = logging.getLogger(__name__)


class DamagedCheckpointError(ValueError):
    """A checkpoint folder whose content is not what its manifest says."""


def folder_name(step: int) -> str:
    """Name of the checkpoint taken after `step` optimizer steps; sorts by step.

    Args:
        step: Optimizer steps taken.
    """
    return f"{PREFIX}{step:08d}"


def step_of(folder: Path) -> int:
    """Optimizer steps taken when the checkpoint was written, from its name.

    Args:
        folder: A folder named by `folder_name`.
    """
    return int(folder.name.removeprefix(PREFIX))


@contextmanager
def atomic_folder(path: Path, facts: dict[str, Any], entries: Entries | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; when the block ends well, hash and sync its files and rename it so.

    A process that dies at any instant leaves `path` as it was. A folder already at `path` is replaced.

    Args:
        path: Where the finished folder will be.
        facts: What the manifest says beside the hashes and the time, such as the step and the metrics.
        entries: What the manifest says of files that others have hashed already; filled while the block runs.
    """
    partial = path.parent / f"{_PARTIAL}{path.name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        files = sorted(file for file in partial.rglob("*") if file.is_file())
        names = {file.relative_to(partial).as_posix(): file for file in files}
        found = {name: (entries or {}).get(name) or manifest_entry(file) for name, file in names.items()}
        (partial / MANIFEST).write_text(json.dumps({**facts, "saved_at": time.time(), "files": found}, indent=1))
        for file in [*files, partial / MANIFEST, *{f.parent for f in files}, partial]:
            _sync(file)
        _swap(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def manifest_entry(file: Path) -> dict[str, Any]:
    """What a manifest says of a file.

    Args:
        file: As it was written.
    """
    return {"bytes": file.stat().st_size, "sha256": _digest(file)}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, after checking that every file is the one that was written.

    Args:
        folder: A checkpoint folder.

    Raises:
        DamagedCheckpointError: A file is missing, shorter, altered or on a broken disk; the message names it.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        entries = [(name, entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"{folder}: no readable {MANIFEST} ({error}).") from error
    for name, size, digest in entries:
        if trouble := _trouble(folder / name, size, digest):
            raise DamagedCheckpointError(f"{folder}: {name} {trouble}.")
    return manifest


def checkpoints_in(run_folder: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first; partial ones are not listed.

    Args:
        run_folder: The run's folder, which holds `checkpoints/`.
    """
    found = (run_folder / "checkpoints").glob(f"{PREFIX}*")
    return sorted(folder for folder in found if folder.name.removeprefix(PREFIX).isdigit())


def newest_valid_checkpoint(run_folder: Path) -> Path | None:
    """The newest checkpoint that is whole; damaged ones are named in the log and passed over.

    Args:
        run_folder: The run's folder, which holds `checkpoints/`.
    """
    for folder in reversed(checkpoints_in(run_folder)):
        try:
            read_manifest(folder)
        except DamagedCheckpointError as error:
            log.warning("Skipping a damaged checkpoint: %s", error)
        else:
            return folder
    return None


def remove_partial(run_folder: Path) -> None:
    """Delete what a killed process left half-written, and put back what it was about to replace.

    Args:
        run_folder: The run's folder, which holds `checkpoints/`.
    """
    for replaced in (run_folder / "checkpoints").glob(f"{_REPLACED}*"):
        original = replaced.with_name(replaced.name.removeprefix(_REPLACED))
        if not original.exists():
            replaced.rename(original)
    for partial in (run_folder / "checkpoints").glob(f"{_PARTIAL}*"):
        shutil.rmtree(partial, ignore_errors=True)


def set_aside_after(run_folder: Path, step: int) -> list[Path]:
    """Rename checkpoints of later steps, so that neither `last` nor what is kept counts them.

    They are there when a run goes on from an earlier step: the later ones are damaged, or were chosen against.

    Args:
        run_folder: The run's folder, which holds `checkpoints/`.
        step: The step that the run goes on from.

    Returns:
        Where they are now: `checkpoints/set-aside-step-NNNNNNNN`.
    """
    moved = []
    for folder in checkpoints_in(run_folder):
        if step_of(folder) > step:
            aside = folder.with_name(f"{_SET_ASIDE}{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            moved.append(folder.rename(aside))
    return moved


def _swap(partial: Path, path: Path) -> None:
    if path.exists():
        replaced = path.parent / f"{_REPLACED}{path.name}"
        shutil.rmtree(replaced, ignore_errors=True)
        path.rename(replaced)
        try:
            partial.rename(path)
        except OSError:
            replaced.rename(path)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        partial.rename(path)
    _sync(path.parent)


def _trouble(file: Path, size: int, digest: str) -> str | None:
    """What is wrong with a file; None when it is as it was written."""
    try:
        if not file.is_file():
            return "is missing"
        if file.stat().st_size != size:
            return f"has {file.stat().st_size} bytes, not {size}"
        return None if _digest(file) == digest else "does not match its SHA-256"
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return f"cannot be read ({error.strerror})"


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
