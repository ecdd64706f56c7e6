"""run.json: what produced a run, so that its numbers can be traced."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SPIKES = "spikes.jsonl"
"""In the run folder: what the spike guard decided."""

PACKAGES = (
    "lmstack",
    "torch",
    "lightning",
    "jsonargparse",
    "hydra-core",
    "litdata",
    "tokenizers",
    "safetensors",
    "numpy",
)


def collect_run_record(**facts: Any) -> dict[str, Any]:
    """Command, git state, package versions and hardware, with what the caller adds.

    Args:
        **facts: Further entries, such as seeds and data fingerprints; plain values.
    """
    import torch

    record = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "git": _git_state(Path.cwd()),
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {"count": os.cpu_count(), "threads": torch.get_num_threads()},
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
    return {**record, **facts}


def write_run_record(folder: Path, record: dict[str, Any]) -> None:
    """Append a start to `run.json`: a list, one entry for each time the run was started or resumed.

    Args:
        folder: The run folder.
        record: From `collect_run_record`.
    """
    starts = _starts(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, [*starts, record])


def add_change(folder: Path, change: dict[str, Any]) -> None:
    """Add to `changes` of the latest start what was changed while the run went on.

    Args:
        folder: The run folder.
        change: `step`, `key`, `from` and `to`, and `typed` when it comes from the command line of a resumed run, which
            goes before later changes; or `step` and `rollback`, the step that the run goes on from.
    """
    starts = _starts(folder) or [{}]
    starts[-1].setdefault("changes", []).append({**change, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
    _write(folder, starts)


def read_changes(folder: Path) -> list[dict[str, Any]]:
    """Changes of settings in the order of their steps, without those that a rollback undid.

    Args:
        folder: The run folder.
    """
    kept: list[dict[str, Any]] = []
    for change in (change for start in _starts(folder) for change in start.get("changes", [])):
        if "rollback" in change:
            kept = [earlier for earlier in kept if earlier["step"] <= change["rollback"]]
        else:
            if change.get("typed"):
                kept = [e for e in kept if e["key"] != change["key"] or e["step"] <= change["step"]]
            kept.append(change)
    return sorted(kept, key=lambda change: int(change["step"]))


def _starts(folder: Path) -> list[dict[str, Any]]:
    path = folder / "run.json"
    starts: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return starts


def _write(folder: Path, starts: list[dict[str, Any]]) -> None:
    beside = folder / ".run.json.partial"
    beside.write_text(json.dumps(starts, indent=1, default=str))
    os.replace(beside, folder / "run.json")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file that a run appends to; none when there is no file, and a torn last line is left out.

    Args:
        path: The file.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state(folder: Path) -> dict[str, Any] | None:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed_files": git("status", "--short").splitlines()}
    except (OSError, subprocess.SubprocessError):
        return None
