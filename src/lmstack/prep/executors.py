"""Where the tasks of a preparation run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from lmstack.prep.pool import Map, process_pool


@dataclass(frozen=True, kw_only=True)
class LocalExecutor:
    """Processes of this machine.

    Attributes:
        kind: `local`.
        num_workers: How many; null is one for each core.
    """

    kind: Literal["local"] = "local"
    num_workers: int | None = None

    @contextmanager
    def open(self) -> Iterator[Map]:
        """How to run tasks."""
        with process_pool(self.num_workers) as run:
            yield run


Executor = LocalExecutor
