"""Loaders whose position is one integer: exact on resume, for any number of workers and ranks."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader

from lmstack.data.skipped_rows import SkippedRows

ENDLESS = 10**9
"""The length of a loader that never ends; one that has a length is not read ahead by Lightning."""


@runtime_checkable
class StepPlan(Protocol):
    """How many rows each optimizer step takes."""

    @property
    def num_steps(self) -> int | None:
        """Optimizer steps of the run; None when it never ends."""
        ...

    def batch_size_at(self, samples: int) -> int:
        """Rows of the step that begins after so many rows; 0 when the run is over.

        Args:
            samples: Rows before it, over all ranks.
        """
        ...


@runtime_checkable
class StepRows(Protocol):
    """Makes the step that begins at a position."""

    @property
    def plan(self) -> StepPlan:
        """The size of each step."""
        ...

    def leave_out(self, skipped: SkippedRows) -> None:
        """Take rows from the order without some stretches of it.

        Args:
            skipped: All that is left out.
        """
        ...

    def __getitem__(self, position: int) -> Any: ...


class StepLoader:
    """Optimizer steps: each item is what this rank does in one step, such as the list of its micro-batches.

    Args:
        rows: Makes a step from its position.
        identity: What decides which rows come where, by name; a state is refused when any of it differs.
        num_workers: Processes that make steps ahead; 0 makes them in this process, which is fast enough.
    """

    def __init__(self, rows: StepRows, identity: dict[str, Any], num_workers: int = 0):
        self.rows = rows
        self.identity = identity
        self.num_workers = num_workers
        self.samples_seen = 0
        self.skipped = SkippedRows()

    def __len__(self) -> int:
        num_steps = self.rows.plan.num_steps
        return ENDLESS if num_steps is None else num_steps

    def __iter__(self) -> Iterator[Any]:
        plan = self.rows.plan
        for micro_batches in _ahead(self.rows, self._positions(), self.num_workers):
            self.samples_seen += plan.batch_size_at(self.samples_seen)
            yield micro_batches

    def _positions(self) -> Iterator[int]:
        position = self.samples_seen
        while size := self.rows.plan.batch_size_at(position):
            yield position
            position += size

    def state_dict(self) -> dict[str, Any]:
        """The position: rows handed out, not those that workers prepared; and what it is a position in."""
        return {"samples_seen": self.samples_seen, "skipped": [list(w) for w in self.skipped.windows], **self.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the rows that were handed out when the state was taken.

        Args:
            state: What `state_dict` gave, on any rank of any number of ranks.

        Raises:
            ValueError: The state is a position in other data; what differs is named.
        """
        state = {"phases": [], **state}  # as it was before there were phases
        for name, value in self.identity.items():
            if name not in state or state[name] != value:
                raise ValueError(
                    f"The checkpoint is a position in other data: its {name} is {state.get(name)!r}, this run's is "
                    f"{value!r}. Resume with the data it was made with, or start a new run from its weights "
                    "(model.init_from)."
                )
        self.samples_seen = int(state["samples_seen"])
        self._leave_out(SkippedRows(tuple((start, stop) for start, stop in state.get("skipped", ()))))

    def take_order(self, rows: StepRows, identity: dict[str, Any]) -> None:
        """Go on with other rows from this position; an iterator that runs already does not notice.

        Args:
            rows: Make the steps to come.
            identity: As at the start.
        """
        self.rows, self.identity = rows, identity
        self.rows.leave_out(self.skipped)

    def skip(self, start: int, stop: int) -> None:
        """Leave out a stretch of the order that is still to come; an iterator that runs already does not notice.

        Args:
            start: Its first place in the full order.
            stop: The place after its last.

        Raises:
            ValueError: Some of it was handed out.
        """
        next_place = self.skipped.place(self.samples_seen)
        if start < next_place:
            raise ValueError(
                f"Rows {start} to {stop} cannot be skipped: all before {next_place} were handed out. Go back to an "
                "earlier checkpoint first."
            )
        self._leave_out(self.skipped.without(start, stop))

    def _leave_out(self, skipped: SkippedRows) -> None:
        self.skipped = skipped
        self.rows.leave_out(skipped)


@runtime_checkable
class HeldOutRows(Protocol):
    """Makes batches by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class ValidationLoader:
    """Batches of held-out rows, from the first at every pass.

    Args:
        rows: Makes a batch.
        num_workers: As in `StepLoader`.
    """

    def __init__(self, rows: HeldOutRows, num_workers: int = 0):
        self.rows = rows
        self.num_workers = num_workers

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Any]:
        yield from _ahead(self.rows, iter(range(len(self.rows))), self.num_workers)


def _ahead(rows: Any, indices: Iterator[int], num_workers: int) -> Iterator[Any]:
    """The items at these indices, in order, made by worker processes when there are any."""
    if num_workers == 0:
        yield from map(rows.__getitem__, indices)
        return
    generator = torch.Generator()
    generator.manual_seed(0)  # its own, so that starting workers leaves the global random state alone
    yield from DataLoader(
        rows,
        batch_size=None,
        sampler=_Indices(indices),
        num_workers=num_workers,
        collate_fn=_unchanged,
        generator=generator,
        pin_memory=torch.cuda.is_available(),
    )


class _Indices(torch.utils.data.Sampler[int]):
    def __init__(self, indices: Iterator[int]):
        self.indices = indices

    def __iter__(self) -> Iterator[int]:
        return self.indices


def _unchanged(item: Any) -> Any:
    return item
