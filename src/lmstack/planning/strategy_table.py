"""Strategies on a cluster as a table for people."""

import json

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lmstack.planning.cluster import Cluster
from lmstack.planning.communication import LINK_EFFICIENCY
from lmstack.planning.strategies import (
    MODEL_FLOPS_UTILIZATION,
    NEVER_RECOMMENDED,
    USABLE_MEMORY,
    StrategyChoice,
    StrategyPlan,
)
from lmstack.planning.table import quantity

_GIB = 2**30
WIDE = 130
"""Columns of a terminal from which on memory is split into what it is for."""


def describe_choice(choice: StrategyChoice, *, width: int) -> RenderableType:
    """A row for each strategy, what is assumed, and which to take.

    Args:
        choice: The strategies.
        width: Columns of the terminal.
    """
    is_wide = width >= WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    table.add_column("strategy", no_wrap=True)
    if is_wide:
        table.add_column("sizes")
    table.add_column("fits")
    table.add_column("GiB", justify="right")
    for part in ("weights", "grads", "optim", "activ", "loss") if is_wide else ():
        table.add_column(part, justify="right", style="dim")
    table.add_column("sent a step", overflow="fold")
    table.add_column("bubble", justify="right")
    table.add_column("step", justify="right")
    refused = []
    for name, plan in choice.plans.items():
        if isinstance(plan, str):
            refused.append(Text(f"{name}: {plan}", style="dim"))
        else:
            table.add_row(*_cells(name, plan, is_wide), style="bold green" if plan is choice.recommended else "")
    return Group(table, *refused, Text(), *_assumptions(choice.cluster), Text(), _recommendation(choice))


def _cells(name: str, plan: StrategyPlan, is_wide: bool) -> list[str]:
    memory = plan.memory
    parts = (memory.parameters, memory.gradients, memory.optimizer, memory.activations, memory.logits)
    sizes = plan.arrangement.sizes
    sent = ", ".join(f"{quantity(each.bytes)}B {each.link}" for each in plan.traffic) or "-"
    return [
        name if is_wide or plan.arrangement.strategy not in _SIZED else f"{name}\n {sizes}",
        *([sizes] if is_wide else []),
        "yes" if plan.fits else "no",
        _gib(memory.total),
        *([_gib(part) for part in parts] if is_wide else []),
        sent,
        f"{plan.bubble:.0%}" if plan.bubble else "-",
        f"{plan.step_seconds:.3g} s",
    ]


_SIZED = ("fsdp2 + replicas", "tp_fsdp2", "ptdp")
"""Whose sizes the number of devices does not say."""


def _gib(number_of_bytes: int) -> str:
    return f"{number_of_bytes / _GIB:.3g}"


def _assumptions(cluster: Cluster) -> list[Text]:
    device = cluster.device
    nodes = f"{cluster.num_nodes} nodes of " if cluster.num_nodes > 1 else ""
    facts = (
        f"{nodes}{cluster.devices_per_node} x {device.name}: {_gib(int(device.memory_bytes))} GiB, peak "
        f"{quantity(device.bf16_flops)}FLOP/s in bfloat16 and {quantity(device.fp32_flops)}FLOP/s in float32, "
        f"{quantity(device.node_bytes_per_second)}B/s within a node and "
        f"{quantity(device.network_bytes_per_second)}B/s to others ({device.source})."
    )
    assumed = (
        f"Assumed: {MODEL_FLOPS_UTILIZATION:.0%} of the peak and {LINK_EFFICIENCY:.0%} of a link's speed are reached, "
        f"{USABLE_MEMORY:.0%} of the memory can be used; what is sent goes on while something is computed, but for "
        "tensor parallelism. Memory, and what is sent, are those of the fullest device."
    )
    never = "; ".join(
        f"{', '.join(name for name in NEVER_RECOMMENDED if NEVER_RECOMMENDED[name] == reason)} ({reason})"
        for reason in dict.fromkeys(NEVER_RECOMMENDED.values())
    )
    return [Text(line, style="dim") for line in (facts, assumed, f"Listed, but not recommended: {never}.")]


def _recommendation(choice: StrategyChoice) -> Text:
    if choice.recommended is None:
        return Text(f"No strategy: {choice.reason}.", style="bold red")
    return Text(f"Take {said(choice.recommended)}: {choice.reason}.", style="bold green")


def said(plan: StrategyPlan) -> str:
    """A strategy in the words of the command line.

    Args:
        plan: Which.
    """
    return " ".join(
        [f"strategy={preset(plan)}", *(f"trainer.{key}={json.dumps(value)}" for key, value in settings(plan).items())]
    )


def preset(plan: StrategyPlan) -> str:
    """The file of `conf/strategy` that the strategy is in.

    Args:
        plan: Which.
    """
    return plan.arrangement.strategy.split(" ")[0]


def settings(plan: StrategyPlan) -> dict[str, int | bool]:
    """Keys of `trainer` that the preset leaves open or has otherwise.

    Args:
        plan: Which.
    """
    layout, name = plan.arrangement.layout, preset(plan)
    sizes: dict[str, int | bool] = {
        "fsdp2": {"strategy.replicas": layout.replicas} if layout.replicas > 1 else {},
        "tp_fsdp2": {"strategy.tensor": layout.tensor},
        "ptdp": {"strategy.pipeline": layout.pipeline, "strategy.tensor": layout.tensor},
    }.get(name, {})
    if plan.arrangement.sequence_parallel and name in ("tp", "tp_fsdp2"):
        sizes |= {"strategy.sequence_parallel": True}
    return sizes
