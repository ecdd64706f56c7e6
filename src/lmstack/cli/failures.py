"""What a failure looks like: one clear line and an exit status, no traceback where the message says all.

Standard library only.
"""

import errno
import os
import re
import select
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lmstack

EXIT_FAILED = 1
EXIT_CONFIG = 2
EXIT_INTERRUPTED = 130
EXIT_NO_READER = 141  # 128 + SIGPIPE, as a shell reports `yes | head`
_PACKAGE = str(Path(lmstack.__file__).parent)


class ConfigError(Exception):
    """A command line or config that cannot run. Each line of the message is one mistake."""


@dataclass
class Outcome:
    """What became of a command.

    Attributes:
        exit_status: 0 when it worked.
    """

    exit_status: int = 0


@contextmanager
def reported(*, go_on: str = "the same command and ckpt_path=last") -> Iterator[Outcome]:
    """Turn what a person can act on into lines on standard error; `LMSTACK_TRACEBACK=1` shows where it came from.

    Args:
        go_on: What goes on after an interruption.
    """
    outcome = Outcome()
    try:
        yield outcome
    except KeyboardInterrupt:
        print(f"lmstack: interrupted. Go on with {go_on}.", file=sys.stderr)
        outcome.exit_status = EXIT_INTERRUPTED
    except Exception as error:
        message = explanation(error)
        if message is None:
            raise
        if os.environ.get("LMSTACK_TRACEBACK") == "1":
            traceback.print_exc()
        for line in message.splitlines():
            print(f"lmstack: error: {line}", file=sys.stderr)
        outcome.exit_status = EXIT_CONFIG if isinstance(error, ConfigError | ValueError) else EXIT_FAILED


def reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more, as after `| head`."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no poll on this system, or no file behind standard output
        return False


def explanation(error: BaseException) -> str | None:
    """What to tell the user, or None where only a traceback says enough.

    Args:
        error: What was raised.
    """
    if isinstance(error, ConfigError) or (isinstance(error, ValueError) and _raised_here(error)):
        return str(error)
    if isinstance(error, BrokenPipeError):
        return None
    if (full := next(filter(_disk_is_full, _chain(error)), None)) is not None:
        reason, remedy = _FULL[_full_code(full) or errno.ENOSPC]
        return f"{reason}{_where(full)}. {remedy} and go on with ckpt_path=last."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{_where(error)}"
    if type(error).__name__ == "MisconfigurationException":  # Lightning's word to the user
        return " ".join(str(error).split())
    if isinstance(error, OSError | ImportError | RuntimeError) and _raised_here(error):
        return str(error)
    return None


# What a disk says when it takes no more. torch.save and safetensors wrap it in errors of their own.
_FULL = {
    errno.ENOSPC: ("no space left on device", "Free some"),
    errno.EDQUOT: ("disk quota exceeded", "Free some space"),
    errno.EFBIG: ("file too large", "Raise the limit (ulimit -f)"),
}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that it followed from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _disk_is_full(error: BaseException) -> bool:
    return _full_code(error) is not None or "PytorchStreamWriter failed writing" in str(error)


def _full_code(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno in _FULL:
        return error.errno
    said = re.search(r"os error (\d+)\b", str(error))
    if said and int(said[1]) in _FULL:
        return int(said[1])
    return errno.ENOSPC if "No space left on device" in str(error) else None


def _where(error: BaseException) -> str:
    names = [str(name) for name in (getattr(error, "filename", None), getattr(error, "filename2", None)) if name]
    return f": {names[0]}" if names else ""


def _raised_here(error: BaseException) -> bool:
    """Whether our own code raised it on purpose: those messages name value, rule and fix."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(_PACKAGE) and (frames[-1].line or "").startswith("raise")
