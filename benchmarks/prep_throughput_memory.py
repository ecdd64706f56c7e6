"""Memory of a process and all it has started, sampled while it runs."""

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

INTERVAL_SECONDS = 0.25


@dataclass
class Peak:
    """What was seen of a tree of processes.

    Attributes:
        tree_mb: Most of all its processes at one time; a page that several share counts once.
        process_mb: Most of any one of them, shared pages included.
        seconds: How long it ran.
    """

    tree_mb: float = 0.0
    process_mb: float = 0.0
    seconds: float = 0.0


def run_and_watch(command: Sequence[str]) -> Peak:
    """Run a command and sample its memory.

    Args:
        command: Program and arguments.

    Raises:
        ValueError: It failed.
    """
    peak = Peak()
    began = time.perf_counter()
    with subprocess.Popen(command) as process:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            sizes = [_memory(each) for each in [root, *_children(root)]]
            peak.tree_mb = max(peak.tree_mb, sum(proportional for proportional, _ in sizes) / 1e6)
            peak.process_mb = max(peak.process_mb, *(resident / 1e6 for _, resident in sizes))
            time.sleep(INTERVAL_SECONDS)
    peak.seconds = time.perf_counter() - began
    if process.returncode:
        raise ValueError(f"{' '.join(command)} ended with {process.returncode}. Its messages are above.")
    return peak


def _children(root: psutil.Process) -> list[psutil.Process]:
    try:
        return root.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _memory(process: psutil.Process) -> tuple[int, int]:
    """Proportional and resident bytes; nothing of a process that has ended."""
    try:
        full = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0, 0
    return full.pss, full.rss
