"""Bytes that torch has allocated on a CPU while something runs, as its own profiler saw them."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate

from torch.profiler import ProfilerActivity, profile


@dataclass
class Allocations:
    """Bytes beyond what was allocated before, at the times (in ns) when that changed."""

    levels: list[tuple[int, int]] = field(default_factory=list)

    @property
    def at_end(self) -> int:
        return self.levels[-1][1]

    def peak_after(self, time_ns: int) -> int:
        return max(level for time, level in self.levels if time >= time_ns)


@contextmanager
def counted_allocations() -> Iterator[Allocations]:
    """Counts every allocation and release of torch's CPU allocator, those inside kernels too, in all threads."""
    found = Allocations()
    gc.collect()  # what is released later must have been allocated later
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield found
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    levels = accumulate(change for _, change in changes)
    found.levels = list(zip((time for time, _ in changes), levels, strict=True))
