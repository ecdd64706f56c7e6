"""Ways to share a step out over devices: each strategy with every size of a mesh that it can have."""

from collections.abc import Iterator
from dataclasses import dataclass

from lmstack.parallel.layout import DIMENSIONS, Layout
from lmstack.parallel.limits import check_pipeline, check_tensor
from lmstack.planning.workload import Workload

STRATEGIES = (
    "single",
    "ddp",
    "fsdp2",
    "fsdp2 + replicas",
    "tp",
    "tp_fsdp2",
    "pipeline",
    "ptdp",
    "deepspeed_zero1",
    "deepspeed_zero2",
    "deepspeed_zero3",
    "local_sgd",
)
"""From the simplest: of equals, the first is taken."""
ZERO_STAGES = {"deepspeed_zero1": 1, "deepspeed_zero2": 2, "deepspeed_zero3": 3}


@dataclass(frozen=True)
class Arrangement:
    """A strategy and its sizes.

    Attributes:
        strategy: One of `STRATEGIES`.
        layout: Devices along each dimension; the data-parallel ones of DDP and local SGD are replicas, of ZeRO shards.
        sequence_parallel: Whether tensor parallel devices share positions too.
    """

    strategy: str
    layout: Layout
    sequence_parallel: bool = False

    @property
    def num_devices(self) -> int:
        """How many take part."""
        pipeline, replicas, shards, tensor = self.layout.sizes
        return pipeline * replicas * shards * tensor

    @property
    def sharded(self) -> tuple[int, int, int]:
        """Into how many parts weights, gradients and optimizer state are cut (ZeRO, arXiv:1910.02054, section 5)."""
        parts = self.layout.shards
        stage = ZERO_STAGES.get(self.strategy, 3)
        return parts if stage == 3 else 1, parts if stage >= 2 else 1, parts

    @property
    def sizes(self) -> str:
        """The sizes that are not 1, for people."""
        named = [f"{name} {size}" for name, size in zip(DIMENSIONS, self.layout.sizes, strict=True) if size > 1]
        return ", ".join([*named, *(["sequence parallel"] if self.sequence_parallel else [])])


def arrangements(strategy: str, num_devices: int, workload: Workload) -> Iterator[Arrangement]:
    """Every way that a strategy has for so many devices, possible or not.

    Tensor parallel devices share positions too wherever they can: less memory for the same traffic.

    Args:
        strategy: One of `STRATEGIES`.
        num_devices: How many there are; `single` uses one.
        workload: What is to be done.
    """
    for layout in _layouts(num_devices)[strategy]:
        is_split = layout.tensor > 1 and layout.pipeline == 1
        is_even = workload.sequence_length % layout.tensor == 0
        can_share = is_split and is_even and not workload.transformer.dropout
        yield Arrangement(strategy, layout, sequence_parallel=can_share)


def _layouts(count: int) -> dict[str, list[Layout]]:
    between = _divisors(count)[1:-1]
    return {
        "single": [Layout()],
        **{name: [Layout(replicas=count)] for name in ("ddp", "local_sgd")},
        **{name: [Layout(shards=count)] for name in ("fsdp2", *ZERO_STAGES)},
        "fsdp2 + replicas": [Layout(replicas=count // shards, shards=shards) for shards in between],
        "tp": [Layout(tensor=count)],
        "tp_fsdp2": [Layout(shards=count // tensor, tensor=tensor) for tensor in between],
        "pipeline": [Layout(pipeline=count)],
        "ptdp": [
            Layout(pipeline=pipeline, replicas=count // pipeline // tensor, tensor=tensor)
            for pipeline in between
            for tensor in _divisors(count // pipeline)
        ],
    }


def why_not(arrangement: Arrangement, workload: Workload, num_devices: int) -> str | None:
    """Why an arrangement cannot be; None when it can.

    Args:
        arrangement: Which.
        workload: What is to be done.
        num_devices: How many there are.
    """
    layout = arrangement.layout
    if arrangement.strategy != "single" and num_devices == 1:
        return "needs several devices"
    try:
        if layout.tensor > 1:
            check_tensor(workload.transformer, layout.tensor, sequence_parallel=arrangement.sequence_parallel)
        num_micro_batches = workload.num_micro_batches(layout.data_parallel)
        if layout.pipeline > 1:
            check_pipeline(workload.transformer, layout.pipeline)
            if num_micro_batches < layout.pipeline:
                return f"{num_micro_batches} micro-batches a step are fewer than {layout.pipeline} stages"
    except ValueError as error:
        return str(error).split(". ")[0].rstrip(".")
    return None


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
