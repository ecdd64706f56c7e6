"""What devices send each other in an optimizer step, over which link, and how long it takes.

A ring's all-gather or reduce-scatter of n bytes over p devices sends (p - 1) / p n from each; an all-reduce is both.
"""

from dataclasses import dataclass

from lmstack.models.activation_checkpointing import BlockCheckpointing, BudgetCheckpointing, FullCheckpointing
from lmstack.planning.arrangement import ZERO_STAGES, Arrangement
from lmstack.planning.cluster import Cluster
from lmstack.planning.device_memory import numbers_of, weights_of_stage
from lmstack.planning.workload import Workload

LINK_EFFICIENCY = 0.8
"""Share of a link's nominal speed that is reached: an assumption."""


@dataclass(frozen=True)
class Traffic:
    """What one device sends along one dimension in a step.

    Attributes:
        what: For people.
        link: `node` or `network`.
        bytes: Sent by a device.
        seconds: At the link's speed, were nothing else to do.
        hides_behind: The share of a step's computing that can go on meanwhile.
    """

    what: str
    link: str
    bytes: float
    seconds: float
    hides_behind: float


def traffic(workload: Workload, arrangement: Arrangement, cluster: Cluster, *, period: int = 50) -> list[Traffic]:
    """Everything that a device sends in a step.

    Args:
        workload: What is to be done.
        arrangement: Who does it.
        cluster: Over which links.
        period: Steps between two exchanges of local SGD.
    """
    layout = arrangement.layout
    strides = {"tensor": 1, "shards": layout.tensor, "replicas": layout.tensor * layout.shards}
    strides["pipeline"] = strides["replicas"] * layout.replicas
    found = []

    def add(dimension: str, what: str, amount: float, hides_behind: float) -> None:
        size: int = getattr(layout, dimension)
        if size > 1:
            link, speed = cluster.bandwidth(strides[dimension], size)
            found.append(Traffic(what, link, amount, amount / (speed * LINK_EFFICIENCY), hides_behind))

    num_micro_batches = workload.num_micro_batches(layout.data_parallel)
    last_backward = 2 / 3 / num_micro_batches  # a backward is two thirds of a micro-batch
    weight_bytes = sum(weights_of_stage(workload, arrangement, 0)) * numbers_of(workload, arrangement).weight
    ring = _ring(layout.replicas)
    if arrangement.strategy == "local_sgd":
        add("replicas", f"weights, every {period} steps", 2 * ring * weight_bytes / period, 0.0)
    elif arrangement.strategy == "ddp":
        add("replicas", "gradients", 2 * ring * weight_bytes, last_backward)
    elif layout.pipeline > 1:  # gradients are reduced after the last micro-batch
        add("replicas", "gradients", 2 * ring * weight_bytes / layout.shards, last_backward)
    else:  # after every micro-batch
        add("replicas", "gradients", num_micro_batches * 2 * ring * weight_bytes / layout.shards, 2 / 3)
    times, hides_behind = _times_sharded(arrangement, num_micro_batches)
    add("shards", "weights and gradients", times * _ring(layout.shards) * weight_bytes, hides_behind)
    add("tensor", "activations", num_micro_batches * _of_layers(workload, arrangement), 0.0)
    add("pipeline", "activations of neighbours", num_micro_batches * 2 * _stream(workload, arrangement), 1.0)
    return found


def _ring(size: int) -> float:
    return (size - 1) / size


def _times_sharded(arrangement: Arrangement, num_micro_batches: int) -> tuple[float, float]:
    """How often all weights go round in a step, and what hides it (ZeRO, arXiv:1910.02054, section 7)."""
    stage = ZERO_STAGES.get(arrangement.strategy, 3)
    if stage == 1:  # gradients once, weights once
        return 2.0, 2 / 3 / num_micro_batches
    if stage == 2:  # gradients after every micro-batch
        return num_micro_batches + 1.0, 2 / 3
    return 3.0 * num_micro_batches, 1.0  # weights forward and backward, and gradients


def _stream(workload: Workload, arrangement: Arrangement) -> float:
    """Bytes of a micro-batch's residual stream."""
    return float(workload.tokens * workload.transformer.dim * numbers_of(workload, arrangement).weight)


def _of_layers(workload: Workload, arrangement: Arrangement) -> float:
    """Two all-reduces forward and two backward a layer (Megatron, arXiv:2104.04473, section 3.2), and one each way at
    the ends; with sequence parallelism the same in halves (arXiv:2205.05198, section 4.2.2).
    """
    config, tensor = workload.transformer, arrangement.layout.tensor
    number = numbers_of(workload, arrangement).compute
    again = {FullCheckpointing: 2.0, BlockCheckpointing: 1.0, BudgetCheckpointing: 1.0}
    a_layer = 4 + again.get(type(workload.activation_checkpointing), 0.0)
    times = a_layer * config.num_layers / arrangement.layout.pipeline + 2
    return times * 2 * _ring(tensor) * workload.tokens * config.dim * number
