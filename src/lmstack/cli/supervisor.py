"""`supervise=true`: start a run again after a crash or a hang, from its last checkpoint. Standard library only."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Any

from lmstack.cli.args import Arguments
from lmstack.cli.autopsy import RESTARTS, Failure, Watch, remember, saved_steps, stacks_of_all
from lmstack.cli.failures import EXIT_CONFIG, EXIT_INTERRUPTED, ConfigError
from lmstack.cli.launch import SUPERVISED

EXIT_TRY_AGAIN = 75
EXIT_START_AGAIN = 76
"""The run wants to be started again at once, as after a rollback: no failure."""

PROGRAM = (sys.executable, "-m", "lmstack", "fit")
_FINAL = (0, EXIT_CONFIG, EXIT_INTERRUPTED, EXIT_TRY_AGAIN)
_LONGEST_BACKOFF = 600.0
_POLL_SECONDS = 0.2
_LAST_LINES = 20
_SHOWN_LINES = 5


@dataclass(frozen=True)
class SupervisorConfig:
    """When a run is started again.

    Attributes:
        max_failures: Give up after so many failures in a row without a newer checkpoint.
        backoff_seconds: Wait so long after the first of them, twice as long after each further one, at most 10 minutes.
        hang_seconds: A process without a sign of life for so long hangs: longer than a step, a rollout, a save and the
            start of the run.
        exclude_after: A host that failed so often is written to `excluded_hosts.txt`.
    """

    max_failures: int = 3
    backoff_seconds: float = 10.0
    hang_seconds: float = 1800.0
    exclude_after: int = 2

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (("max_failures", 1), ("backoff_seconds", 0), ("hang_seconds", 5), ("exclude_after", 1)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"supervise.{name}={value:g}: must be at least {least}.")


def supervisor_config(value: Any) -> SupervisorConfig | None:
    """What `supervise` says; None when the run is not to be supervised.

    Args:
        value: Null or false, true, or a mapping of `SupervisorConfig`'s fields.

    Raises:
        ConfigError: It is something else, or something else supervises the run already.
    """
    if not value:
        return None
    types = {field.name: type(field.default) for field in fields(SupervisorConfig)}
    if value is not True and not (isinstance(value, dict) and set(value) <= set(types)):
        raise ConfigError(f"supervise={value!r}: use true, or set supervise.{', supervise.'.join(types)}.")
    given = {} if value is True else value
    for name, number in given.items():
        if isinstance(number, bool) or not isinstance(number, int | types[name]):
            raise ConfigError(f"supervise.{name}={number!r}: expected {types[name].__name__}.")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError("supervise: torchrun starts a run again by itself. Use its --max-restarts, and no supervise.")
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        raise ConfigError("supervise: one process must start all others. Use srun with one torchrun on each node.")
    return SupervisorConfig(**{name: types[name](number) for name, number in given.items()})


def supervise(
    config: SupervisorConfig, arguments: Arguments, run_folder: Path, program: Sequence[str] = PROGRAM
) -> int:
    """Run `lmstack fit` until it ends well, is told to stop, or fails too often without progress.

    Args:
        config: When to give up.
        arguments: The command line.
        run_folder: Of the run.
        program: What the words of the command line follow.

    Returns:
        The exit status of the last process.
    """
    return _Supervisor(config, arguments, run_folder, program).run()


class _Supervisor:
    def __init__(
        self, config: SupervisorConfig, arguments: Arguments, run_folder: Path, program: Sequence[str]
    ) -> None:
        self.config = config
        self.program = program
        self.arguments = arguments
        self.run_folder = run_folder
        # Without ckpt_path=last a run replaces what it finds: that is neither its progress nor to be gone on from.
        goes_on = any((o.key, o.value) == ("ckpt_path", "last") for o in arguments.overrides)
        self.of_another_run = set() if goes_on else saved_steps(run_folder)
        self.process: subprocess.Popen[bytes] | None = None
        self.told_to_stop: int | None = None
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)

    def run(self) -> int:
        is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # nohup
        passed_on = [number for number in _STOPPED if not (number == signal.SIGHUP and is_ignored)]
        previous = {number: signal.signal(number, self._pass_on) for number in passed_on}
        try:
            return self._lives()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _lives(self) -> int:
        progress, in_a_row, first = self._newest_step(), 0, True
        while True:
            status, failure = self._one_life(self._words(first))
            first = False
            if self.told_to_stop is not None:
                return status if status in _FINAL else _STOPPED[self.told_to_stop]
            if failure is None and status != EXIT_START_AGAIN:
                return status
            step = self._newest_step()
            if failure is None:  # put back: what comes after this step is new again
                progress, in_a_row = step, 0
                continue
            in_a_row = in_a_row + 1 if step <= progress else 1
            progress = max(progress, step)
            gives_up = in_a_row >= self.config.max_failures
            try:
                for host in remember(self.run_folder, failure, self.config.exclude_after):
                    _say(f"{host} fails repeatedly: see excluded_hosts.txt. Slurm: --exclude={host}")
            except OSError as error:
                _say(f"cannot write {RESTARTS}: {error.strerror}.")
            _say(f"{failure}{' The last lines were:' if failure.last_lines else ''}")
            for line in failure.last_lines[-_SHOWN_LINES:]:
                _say(f"  {line}")
            if gives_up:
                _say(f"giving up after {in_a_row} failures without a newer checkpoint than step {progress}.")
                return failure.exit_status
            wait = min(self.config.backoff_seconds * 2 ** (in_a_row - 1), _LONGEST_BACKOFF)
            _say(
                f"starting again {f'from step {step}' if step >= 0 else 'from the beginning'} in {wait:g} s "
                f"(failure {in_a_row} of {self.config.max_failures} without a newer checkpoint)."
            )
            if not self._sleep(wait):
                assert self.told_to_stop is not None
                return _STOPPED[self.told_to_stop]

    def _words(self, first: bool) -> list[str]:
        """The command line; once there is a checkpoint of its own, a run goes on from that and replaces nothing."""
        goes_on = not first and self._newest_step() >= 0
        dropped = {"ckpt_path", "overwrite"} if goes_on else set()
        kept = [override for override in self.arguments.overrides if override.key not in dropped]
        words = [f"--{o.key}={o.value}" if o.is_option else o.text for o in kept]
        return ["--config", str(self.arguments.config), *words, *(["ckpt_path=last"] if goes_on else [])]

    def _newest_step(self) -> int:
        """Of the run's own checkpoints; -1 without any."""
        return max((step for step, _ in saved_steps(self.run_folder) - self.of_another_run), default=-1)

    def _one_life(self, words: list[str]) -> tuple[int, Failure | None]:
        self.last_lines.clear()
        command = [*self.program, *words]
        environment = {**os.environ, SUPERVISED: "1"}
        watch = Watch(self.run_folder, self.config.hang_seconds)
        # A session of its own: what is sent to this process's group, such as Ctrl-C, reaches it through `_pass_on`.
        self.process = process = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, start_new_session=True
        )
        if self.told_to_stop is not None:  # before there was a process to tell
            self._pass_on(self.told_to_stop, None)
        reader = threading.Thread(target=self._copy_errors, args=(process,), daemon=True)
        reader.start()
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
            watch.look()
            if watch.hangs and process.poll() is None:
                with suppress(OSError):  # a full disk
                    watch.stacks = stacks_of_all(self.run_folder, process.pid)
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        watch.look()
        watch.end_survivors(process.pid)
        reader.join(timeout=5)
        status = process.returncode
        if status in (*_FINAL, EXIT_START_AGAIN) and not watch.hangs:
            return status, None
        return status, watch.failure(status, list(self.last_lines))

    def _copy_errors(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            with suppress(OSError):  # nobody reads it any more: the run must not wait for them
                sys.stderr.buffer.write(line)
                sys.stderr.flush()
            if text := line.decode(errors="replace").rstrip():
                self.last_lines.append(text)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.told_to_stop = number
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    def _sleep(self, seconds: float) -> bool:
        """Whether nobody interrupted."""
        end = time.monotonic() + seconds
        while self.told_to_stop is None and (left := end - time.monotonic()) > 0:
            time.sleep(min(_POLL_SECONDS, left))
        return self.told_to_stop is None


_STOPPED: dict[int, int] = {
    signal.SIGTERM: EXIT_TRY_AGAIN,
    signal.SIGUSR1: EXIT_TRY_AGAIN,
    signal.SIGHUP: EXIT_TRY_AGAIN,
    signal.SIGINT: EXIT_INTERRUPTED,
}


def _say(text: str) -> None:
    with suppress(OSError):
        print(f"lmstack: supervisor: {text}", file=sys.stderr, flush=True)
