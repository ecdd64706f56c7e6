"""Which process of a run died or hangs, on which host, and why. Standard library only."""

import json
import os
import shutil
import signal
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RESTARTS = "restarts.jsonl"
EXCLUDED = "excluded_hosts.txt"
_HEARTBEATS = "heartbeats"
_POST_MORTEM = "post_mortem"
_SECONDS_TO_DUMP = 2.0


@dataclass
class Failure:
    """How a run ended that should not have.

    Attributes:
        what: `failed`, `was killed by SIGKILL`, `hung`.
        exit_status: To end with.
        rank: Which process was first; None when it is not known, or all hang.
        host: Where it ran; several, with commas between, where one of them is to blame.
        step: Optimizer steps taken, as far as is known.
        error: The exception, where there was one.
        last_lines: Of what the run said.
        details: Where there is more: a post-mortem, or stacks.
        time: When.
    """

    what: str
    exit_status: int
    rank: int | None
    host: str
    step: int | None
    error: str | None
    last_lines: list[str]
    details: str | None
    time: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S%z"))

    def __str__(self) -> str:
        who = "the run" if self.rank is None else f"rank {self.rank}"
        where = f" at step {self.step}" if self.step is not None else ""
        error = f": {self.error}" if self.error else "."
        return f"{who} on {self.host} {self.what}{where}{error}{f' ({self.details})' if self.details else ''}"


class Watch:
    """Looks at the heartbeats of a run while it lasts.

    Args:
        run_folder: Of the run.
        hang_seconds: Silence that means a hang.
    """

    def __init__(self, run_folder: Path, hang_seconds: float) -> None:
        self.run_folder = run_folder
        self.hang_seconds = hang_seconds
        self.hangs: list[dict[str, Any]] = []
        self.stacks: Path | None = None
        self._vanished: list[dict[str, Any]] = []
        self._born = time.time()
        shutil.rmtree(run_folder / _HEARTBEATS, ignore_errors=True)

    def look(self) -> None:
        """Note who is silent, and who has just died without a word."""
        beats = _beats(self.run_folder)
        now = time.time()
        silent = [beat for beat in beats if now - beat["at"] > self.hang_seconds]
        if not beats and now - self._born > self.hang_seconds:
            silent = [{"rank": "all, none ever started", "host": socket.gethostname(), "step": None}]
        self.hangs = self.hangs or silent
        if not self._vanished:  # whoever follows was pulled down by the first
            here = socket.gethostname()
            self._vanished = [beat for beat in beats if beat["host"] == here and not _is_alive(beat["pid"])]

    def failure(self, status: int, last_lines: list[str]) -> Failure:
        """What happened, as far as the traces tell.

        Args:
            status: Exit status of the first process; negative for a signal.
            last_lines: What the run said.
        """
        exit_status = status if status > 0 else 128 - status
        here = socket.gethostname()
        if self.hangs:
            first = min(self.hangs, key=lambda beat: beat.get("at", 0.0))
            ranks = ", ".join(str(beat["rank"]) for beat in self.hangs)
            rank = first["rank"] if len(self.hangs) == 1 and "pid" in first else None
            what = f"hung for {self.hang_seconds:g} s" + (f" (silent: ranks {ranks})" if rank is None else "")
            details = str(self.stacks) if self.stacks else None
            return Failure(what, 1, rank, first["host"], first["step"], None, [], details)
        reports = self._post_mortems()
        silent = [b for b in self._vanished if all(b["rank"] != report["rank"] for report in reports)]
        if silent and (len(silent) < len(_beats(self.run_folder)) or not reports):
            beat = silent[0]
            what = _how_it_ended(status) if beat["rank"] == 0 else "was killed"
            return Failure(what, exit_status, beat["rank"], beat["host"], beat["step"], None, last_lines, None)
        if reports:
            first = min(reports, key=lambda report: report["time"])
            suspects = first.get("suspects") or [first]  # who noticed need not be to blame
            rank = suspects[0]["rank"] if len(suspects) == 1 else None
            host = ",".join(dict.fromkeys(suspect["host"] for suspect in suspects))
            return Failure("failed", exit_status, rank, host, first["step"], first["error"], [], first["folder"])
        return Failure(_how_it_ended(status), exit_status, None, here, None, None, last_lines, None)

    def end_survivors(self, session: int) -> None:
        """Kill what the first process left behind.

        Args:
            session: Its process id, which is the session of all it started.
        """
        for beat in _local_beats(self.run_folder, session):
            os.kill(beat["pid"], signal.SIGKILL)

    def _post_mortems(self) -> list[dict[str, Any]]:
        found = []
        for path in (self.run_folder / _POST_MORTEM).glob("step-*/facts.json"):
            facts = _read(path)
            if facts.get("time", 0.0) >= self._born:
                found.append({**facts, "folder": str(path.parent)})
        return found


def _how_it_ended(status: int) -> str:
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"


def stacks_of_all(run_folder: Path, session: int) -> Path:
    """Have every process on this host write its stacks; the folder they are in.

    Args:
        run_folder: Of the run.
        session: Of its processes.
    """
    for beat in _local_beats(run_folder, session):
        os.kill(beat["pid"], signal.SIGUSR2)
    time.sleep(_SECONDS_TO_DUMP)
    folder = run_folder / _POST_MORTEM / f"hang-{time.strftime('%Y%m%d-%H%M%S')}"
    folder.mkdir(parents=True, exist_ok=True)
    for path in (run_folder / _HEARTBEATS).glob("rank-*.stacks.txt"):
        shutil.copy(path, folder / path.name)
    return folder


def saved_steps(run_folder: Path) -> set[tuple[int, int]]:
    """Step and time of each checkpoint that has a manifest. Hashes are left to those who load it.

    Args:
        run_folder: Of the run.
    """
    found = set()
    for path in (run_folder / "checkpoints").glob("step-*/manifest.json"):
        step = path.parent.name.removeprefix("step-")
        with suppress(FileNotFoundError):  # deleted in this moment
            if step.isdigit():
                found.add((int(step), path.stat().st_mtime_ns))
    return found


def remember(run_folder: Path, failure: Failure, exclude_after: int) -> list[str]:
    """Append the failure to `restarts.jsonl`, and a host that fails too often to `excluded_hosts.txt`.

    Args:
        run_folder: Of the run.
        failure: What happened.
        exclude_after: Failures of a host that are too often.

    Returns:
        Hosts that were added.

    Raises:
        OSError: The disk takes no more.
    """
    run_folder.mkdir(parents=True, exist_ok=True)
    with (run_folder / RESTARTS).open("a") as file:
        file.write(json.dumps(asdict(failure)) + "\n")
    hosts: list[str] = []
    for line in (run_folder / RESTARTS).read_text(errors="replace").splitlines():
        with suppress(ValueError):  # torn, by a full disk
            hosts += json.loads(line)["host"].split(",")
    path = run_folder / EXCLUDED
    excluded = path.read_text().split() if path.exists() else []
    added = [host for host in dict.fromkeys(hosts) if hosts.count(host) >= exclude_after and host not in excluded]
    if added:
        path.write_text("".join(f"{host}\n" for host in [*excluded, *added]))
    return added


def _beats(run_folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted((run_folder / _HEARTBEATS).glob("rank-*.json")):
        with suppress(FileNotFoundError):  # the folder of a run that failed at its start is removed
            if facts := _read(path):
                found.append({**facts, "at": path.stat().st_mtime})
    return found


def _local_beats(run_folder: Path, session: int) -> list[dict[str, Any]]:
    return [
        beat
        for beat in _beats(run_folder)
        if beat["host"] == socket.gethostname() and _is_alive(beat["pid"]) and _session(beat["pid"]) == session
    ]


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except ProcessLookupError:
        return False
    except OSError:  # no /proc on this system, or another user's
        return True


def _read(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
