"""Every strategy on a cluster: does it fit, how long does a step take, and which to take."""

from collections.abc import Mapping
from dataclasses import dataclass

from lmstack.models.memory import MemoryEstimate
from lmstack.planning.arrangement import STRATEGIES, ZERO_STAGES, Arrangement, arrangements, why_not
from lmstack.planning.cluster import Cluster
from lmstack.planning.communication import Traffic, traffic
from lmstack.planning.device_memory import device_memory
from lmstack.planning.workload import Workload

MODEL_FLOPS_UTILIZATION = 0.4
"""Share of the peak reached while computing: an assumption, that of Llama 3 (arXiv:2407.21783, table 4)."""
USABLE_MEMORY = 0.9
"""Of a device; the rest is for kernels, communication buffers and fragmentation: an assumption."""
AS_GOOD = 0.03
"""A simpler strategy is taken when it is slower by no more than this share."""
NEVER_RECOMMENDED = {
    **dict.fromkeys(ZERO_STAGES, "needs DeepSpeed; fsdp2 does the same with PyTorch alone"),
    "local_sgd": "another algorithm, with other results",
}


@dataclass(frozen=True)
class StrategyPlan:
    """What a strategy costs.

    Attributes:
        arrangement: The strategy, and the best sizes for it.
        memory: Of the fullest device.
        fits: Whether that is within the usable memory.
        traffic: What a device sends in a step.
        bubble: Time that a pipeline waits, as a share of what it works.
        compute_seconds: Of a step, without waiting.
        exposed_seconds: Communication that nothing hides.
    """

    arrangement: Arrangement
    memory: MemoryEstimate
    fits: bool
    traffic: tuple[Traffic, ...]
    bubble: float
    compute_seconds: float
    exposed_seconds: float

    @property
    def step_seconds(self) -> float:
        """Of an optimizer step."""
        return self.compute_seconds * (1 + self.bubble) + self.exposed_seconds


@dataclass(frozen=True)
class StrategyChoice:
    """All strategies on a cluster.

    Attributes:
        workload: What is to be done.
        cluster: With what.
        plans: By strategy; the reason where there can be none.
        recommended: The strategy to take; None where nothing fits.
        reason: Why.
    """

    workload: Workload
    cluster: Cluster
    plans: dict[str, StrategyPlan | str]
    recommended: StrategyPlan | None
    reason: str


def choose_strategy(
    workload: Workload, cluster: Cluster, *, refusals: Mapping[str, str] | None = None
) -> StrategyChoice:
    """Plan every strategy and recommend one.

    Args:
        workload: What is to be done.
        cluster: With what.
        refusals: Strategies that are out of the question, and why.
    """
    plans = {name: (refusals or {}).get(name) or _best(name, workload, cluster) for name in STRATEGIES}
    possible = [plan for plan in plans.values() if not isinstance(plan, str)]
    fitting = [plan for plan in possible if plan.fits and plan.arrangement.strategy not in NEVER_RECOMMENDED]
    if not fitting:
        return StrategyChoice(workload, cluster, plans, None, _why_nothing(possible, cluster))
    fastest = min(fitting, key=lambda plan: plan.step_seconds)
    taken = next(plan for plan in fitting if plan.step_seconds <= (1 + AS_GOOD) * fastest.step_seconds)
    return StrategyChoice(workload, cluster, plans, taken, _why(taken, fastest, plans))


def _best(strategy: str, workload: Workload, cluster: Cluster) -> StrategyPlan | str:
    """The fastest sizes that fit; where none do, those that take the least memory; or why there are none."""
    plans, reasons = [], []
    for arrangement in arrangements(strategy, cluster.num_devices, workload):
        if (reason := why_not(arrangement, workload, cluster.num_devices)) is None:
            plans.append(_plan(workload, arrangement, cluster))
        else:
            reasons.append(reason)
    if fitting := [plan for plan in plans if plan.fits]:
        return min(fitting, key=lambda plan: plan.step_seconds)
    if plans:
        return min(plans, key=lambda plan: plan.memory.total)
    return reasons[0] if reasons else "needs more devices"


def _plan(workload: Workload, arrangement: Arrangement, cluster: Cluster) -> StrategyPlan:
    memory = device_memory(workload, arrangement, is_cpu=cluster.device.name == "cpu")
    sent = tuple(traffic(workload, arrangement, cluster))
    peak = cluster.device.fp32_flops if workload.precision == "32-true" else cluster.device.bf16_flops
    compute = workload.flops / (arrangement.num_devices * peak * MODEL_FLOPS_UTILIZATION)
    stages = arrangement.layout.pipeline
    return StrategyPlan(
        arrangement=arrangement,
        memory=memory,
        fits=memory.total <= USABLE_MEMORY * cluster.device.memory_bytes,
        traffic=sent,
        # (p - 1) / m: arXiv:2104.04473, section 2.2
        bubble=(stages - 1) / workload.num_micro_batches(arrangement.layout.data_parallel),
        compute_seconds=compute,
        exposed_seconds=sum((max(0.0, each.seconds - each.hides_behind * compute) for each in sent), 0.0),
    )


def _why(taken: StrategyPlan, fastest: StrategyPlan, plans: Mapping[str, StrategyPlan | str]) -> str:
    name = taken.arrangement.strategy
    parts = ["the fastest that fits" if taken is fastest else f"fits, and is within {AS_GOOD:.0%} of the fastest"]
    simpler = [plan for plan in list(plans.values())[: STRATEGIES.index(name)] if not isinstance(plan, str)]
    if too_large := [plan.arrangement.strategy for plan in simpler if not plan.fits]:
        parts.append(f"{', '.join(too_large)} {'does' if len(too_large) == 1 else 'do'} not fit")
    return "; ".join(parts)


def _why_nothing(possible: list[StrategyPlan], cluster: Cluster) -> str:
    if not possible:
        return "nothing fits the batch and the shape"
    least = min(possible, key=lambda plan: plan.memory.total)
    return (
        f"nothing fits: even {least.arrangement.strategy} needs {least.memory.total / 2**30:.3g} GiB of "
        f"{USABLE_MEMORY * cluster.device.memory_bytes / 2**30:.3g} usable. Use more devices, a smaller "
        "data.micro_batch_size, or model.activation_checkpointing.kind=full"
    )
