"""Tasks in many processes of this machine."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

Map = Callable[[Callable[..., Any], Sequence[Any]], Iterator[Any]]
"""Calls a function with every item, in any order, and yields the results as they come."""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def process_pool(num_workers: int | None) -> Iterator[Map]:
    """A `Map` over processes that live as long as the context; they go when this process is killed.

    Args:
        num_workers: Processes; None is one for each core, 0 or 1 works in this process.

    Raises:
        ValueError: In a task, or a process died.
    """
    workers = available_cores() if num_workers is None else num_workers
    if workers <= 1:
        yield lambda function, items: map(function, items)
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (os.getpid(),))

    def run(function: Callable[..., Any], items: Sequence[Any]) -> Iterator[Any]:
        try:
            for future in as_completed([pool.submit(function, item) for item in items]):
                yield future.result()
        except ValueError as error:
            raise ValueError(str(error)) from error  # without the traceback of the worker
        except BrokenProcessPool:
            raise ValueError(
                "A worker process died, most likely for lack of memory. Run the same command again with fewer workers "
                f"(num_workers={max(1, workers // 2)}); finished partitions are kept."
            ) from None

    try:
        yield run
    except KeyboardInterrupt:
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()  # what it is at is not waited for, and is done again
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(parent: int) -> None:
    """A worker leaves with its parent, also when that was killed, and leaves Ctrl-C to it."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
