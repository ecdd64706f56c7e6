"""Bytes that torch has allocated on a CPU while something runs, as its own profiler saw them."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch.profiler import ProfilerActivity, profile


@dataclass
class Allocations:
    """Bytes beyond what was allocated before: at the end, and at most."""

    at_end: int = 0
    peak: int = 0


@contextmanager
def counted_allocations() -> Iterator[Allocations]:
    """Counts every allocation and release of torch's CPU allocator, those inside kernels too, in all threads."""
    found = Allocations()
    gc.collect()  # what is released later must have been allocated later
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield found
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    for _, change in changes:
        found.at_end += change
        found.peak = max(found.peak, found.at_end)
