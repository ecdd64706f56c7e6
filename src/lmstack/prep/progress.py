"""A progress bar over bytes, where there is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


@contextmanager
def byte_progress(title: str, total: int, completed: int) -> Iterator[Callable[[int], None]]:
    """What is told of every few bytes done; the bar goes when they are all done.

    Args:
        title: Of the bar.
        total: Bytes.
        completed: Of them, before.
    """
    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=total, completed=completed)
        yield lambda size: progress.advance(task, size)
