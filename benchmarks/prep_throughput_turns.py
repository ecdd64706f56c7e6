"""Two libraries that do the same jobs in turn, each in a process and an environment of its own.

Whatever else the machine does hits both alike, and each ratio compares two neighbouring turns. The standard library is
all that is needed here, as the other environment has nothing of this one.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Job = Callable[[], int]
"""Does the work once and gives the number of documents kept, or of tokens."""


class Library:
    """A process that does jobs when told their names.

    Args:
        command: Program and arguments; it calls `serve`.
    """

    def __init__(self, command: Sequence[str]) -> None:
        quiet = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
        self._messages = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `stop`
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            text=True,
            env={**os.environ, **quiet},
        )
        self.versions: dict[str, str] = self._answer()

    def take(self, job: str) -> dict[str, Any]:
        """Let it do a job, and wait.

        Args:
            job: Its name.

        Returns:
            `seconds` on the clock, `cpu_seconds` with those of the processes it started, and `result`.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(job + "\n")
        self._process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        """End it."""
        self._process.communicate()
        self._messages.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._messages.seek(0)
            raise ValueError(f"{self._process.args} has died:\n{self._messages.read()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def serve(jobs: Mapping[str, Job], versions: Mapping[str, str]) -> None:
    """Do jobs as their names are read from standard input, until it ends.

    Args:
        jobs: By name.
        versions: Of the packages, told first.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    print(json.dumps(versions), file=answers)
    for line in sys.stdin:
        began, cpu_began = time.perf_counter(), _cpu_seconds()
        result = jobs[line.strip()]()
        took = {"seconds": time.perf_counter() - began, "cpu_seconds": _cpu_seconds() - cpu_began}
        print(json.dumps({**took, "result": result}), file=answers)


def _cpu_seconds() -> float:
    """Of this process and of those it has started that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
