"""Where the tasks of a preparation run: processes of this machine, a Ray cluster, or jobs of Slurm."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

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


@dataclass(frozen=True, kw_only=True)
class RayExecutor:
    """Workers of a Ray cluster, which must see the same files under the same paths.

    Attributes:
        kind: `ray`.
        address: Of a running cluster, such as auto or ray://head:10001; null starts one on this machine.
        num_workers: Tasks at the same time on a cluster started here, and processes that tokenize; null is one a core.
    """

    kind: Literal["ray"] = "ray"
    address: str | None = None
    num_workers: int | None = None

    @contextmanager
    def open(self) -> Iterator[Map]:
        """How to run tasks.

        Raises:
            ValueError: Ray is not installed.
        """
        try:
            import ray
        except ModuleNotFoundError:
            raise ValueError("executor.kind=ray needs Ray: pip install ray. Or use executor.kind=local.") from None
        num_cpus = self.num_workers if self.address is None else None
        ray.init(address=self.address, num_cpus=num_cpus, include_dashboard=False, log_to_driver=False)

        def run(function: Callable[..., Any], items: Sequence[Any]) -> Iterator[Any]:
            call = ray.remote(function)
            waiting = [call.remote(item) for item in items]
            while waiting:
                ready, waiting = ray.wait(waiting)
                yield from ray.get(ready)

        try:
            yield run
        finally:
            ray.shutdown()


@dataclass(frozen=True, kw_only=True)
class SlurmExecutor:
    """Job files for Slurm: an array of jobs for every step, each waiting for the one before.

    Attributes:
        kind: `slurm`.
        num_jobs: Jobs of an array, at most; each takes its share of the partitions.
        options: What every job asks for, such as `{partition: cpu, time: "4:00:00", mem: 8G}`.
        cpus_to_tokenize: Cores of the last job, which writes shards and report.
        setup: A line of shell before the command, such as `source .venv/bin/activate`; empty for none.
    """

    kind: Literal["slurm"] = "slurm"
    num_jobs: int = 64
    options: dict[str, str | int] | None = None
    cpus_to_tokenize: int = 16
    setup: str = ""

    def __post_init__(self) -> None:
        if min(self.num_jobs, self.cpus_to_tokenize) < 1:
            raise ValueError(
                f"executor: num_jobs={self.num_jobs}, cpus_to_tokenize={self.cpus_to_tokenize}: 1 or more."
            )


Executor = LocalExecutor | RayExecutor | SlurmExecutor
