"""Implementations that take turns, each in a process of its own, and what every report of such a comparison says."""

import argparse
import contextlib
import importlib.metadata
import json
import math
import os
import platform
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ANSWER_SECONDS = 900.0  # compilation included
MOST_PARAMETER_ERROR = 0.01


@dataclass
class Outcome:
    """What one implementation did in one setting.

    Attributes:
        implementation: Its name.
        num_parameters: Of what is trained, a tied matrix counted once.
        versions: Of its packages.
        turns: Steps, seconds and processor seconds of each round.
        error: Why it did not run; empty when it did.
    """

    implementation: str
    num_parameters: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    turns: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""

    def note(self, answer: dict[str, Any]) -> None:
        """Keep what an answer says beside its times, and take it out of it.

        Args:
            answer: The first, or to a turn.
        """


class Worker:
    """A process that takes steps when told to; the first failure ends it and is kept.

    Args:
        outcome: What it is to run, filled in as it goes.
        command: Interpreter and script.
        job: What the script is to do.
        threads: Of torch.
        environment: Variables, beside those that keep libraries quiet.
    """

    def __init__(
        self,
        outcome: Outcome,
        command: Sequence[str],
        job: dict[str, Any],
        threads: int,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.outcome = outcome
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `stop`
        count = str(threads)
        quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            [*command, json.dumps({**job, "threads": threads})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **quiet, **(environment or {}), "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count},
        )

    def wait_ready(self) -> None:
        """Wait until the model is built and the first step is next."""
        if answer := self._answer():
            self.outcome.num_parameters = answer["num_parameters"]
            self.outcome.versions = answer["versions"]
            self.outcome.note(answer)

    def take(self, steps: int, *, timed: bool) -> None:
        """Let it take optimizer steps, alone.

        Args:
            steps: How many.
            timed: Keep the time.
        """
        if self.outcome.error:
            return
        self._say(str(steps))
        if answer := self._answer():
            self.outcome.note(answer)
            if timed:
                self.outcome.turns.append(answer)

    def stop(self) -> None:
        """End it."""
        if self._process.poll() is None:
            self._say("")
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died: the answer, or its absence, will say so
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _answer(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], ANSWER_SECONDS)[0]:
            self._process.kill()
            self._fail(f"no answer in {ANSWER_SECONDS:.0f} s")
            return None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            lines = [text for text in self._errors.read().splitlines() if text.strip()]
            said = next((text for text in reversed(lines) if re.match(r"[\w.]*(Error|Exception|Exit)\b", text)), "")
            self._fail(said or (lines or [""])[-1] or f"exit status {self._process.returncode}")
            return None
        return json.loads(line)  # type: ignore[no-any-return]

    def _fail(self, reason: str) -> None:
        # Where a file lies on this machine is nobody's business.
        self.outcome.error = re.sub(r"(?:/[^\s/'\":,]+)+/", "", reason)[:300]
        self.outcome.turns = []


def take_turns(workers: Sequence[Worker], warmup_steps: int, steps: int, rounds: int) -> None:
    """One after the other, round after round; all are ended afterwards.

    Args:
        workers: Of one setting.
        warmup_steps: Not timed.
        steps: Of a turn.
        rounds: Turns of each.
    """
    try:
        for worker in workers:
            worker.wait_ready()
        for worker in workers:
            worker.take(warmup_steps, timed=False)
        for _ in range(rounds):
            for worker in workers:
                worker.take(steps, timed=True)
    finally:
        for worker in workers:
            worker.stop()


def refuse_other_models(outcomes: Sequence[Outcome]) -> None:
    """Refuse to compare what has another number of parameters.

    Args:
        outcomes: Of one setting; those that fail the check get an error.
    """
    reference = next((outcome.num_parameters for outcome in outcomes if not outcome.error), 0)
    for outcome in outcomes:
        if not outcome.error and abs(outcome.num_parameters / reference - 1) > MOST_PARAMETER_ERROR:
            outcome.error = f"{outcome.num_parameters:,} parameters, not {reference:,}"


def environment(outcomes: Sequence[Outcome], threads: int, loads: tuple[float, float], peers: str) -> dict[str, Any]:
    """What the figures depend on, without a path of this machine.

    Args:
        outcomes: Of all settings.
        threads: Of each process.
        loads: Load average over a minute, before and after.
        peers: What to call the environment of the others.
    """
    own = {"python": platform.python_version(), "lmstack": importlib.metadata.version("lmstack")}
    return {
        "command": command_line(peers),
        "versions": own | {name: version for outcome in outcomes for name, version in outcome.versions.items()},
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_average_before_and_after": [round(load, 2) for load in loads],
    }


def command_line(peers: str) -> str:
    """This command, with the interpreter of the peers and the folder of the results made general.

    Args:
        peers: What to call the environment of the others.
    """
    words, hidden = [f"python benchmarks/{Path(sys.argv[0]).name}"], False
    for word in sys.argv[1:]:
        name, equals, value = word.partition("=")
        if hidden or (name == "--peer-python" and equals):
            word = f"{peers}/bin/python" if hidden else f"--peer-python={peers}/bin/python"
        elif os.path.isabs(value or word):
            word = f"{name}={Path(value).name}" if value else Path(word).name
        hidden = word == "--peer-python"
        words.append(word)
    return " ".join(words)


def cpu_model() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def write_report(path: Path, lines: Sequence[str], record: dict[str, Any]) -> None:
    """`path`.md to read and `path`.json with every turn.

    Args:
        path: Without a suffix.
        lines: Of the first.
        record: The second.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".md").write_text("\n".join(lines))
    path.with_name(path.name + ".json").write_text(json.dumps(nan_free(record), indent=1) + "\n")


def markdown(header: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table.

    Args:
        header: Of its columns.
        cells: By row.
    """
    lines = [header, ["---"] * len(header), *cells]
    return ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines]


def nan_free(value: Any) -> Any:
    """The same with null for NaN, which JSON does not have.

    Args:
        value: Plain values, nested.
    """
    if isinstance(value, dict):
        return {key: nan_free(item) for key, item in value.items()}
    if isinstance(value, list):
        return [nan_free(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def chosen(allowed: tuple[str, ...]) -> Any:
    """A parser of comma-separated choices.

    Args:
        allowed: What may be chosen.
    """

    def parse(text: str) -> list[str]:
        words = text.split(",")
        for word in words:
            if word not in allowed:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(allowed)}")
        return words

    return parse
