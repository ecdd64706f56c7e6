"""A plan as a table for people."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lmstack.data.mixture_plan import PlannedSource
from lmstack.planning.run_plan import RunPlan

_GIB = 2**30


def describe_run(plan: RunPlan, title: str = "") -> RenderableType:
    """What the run is about to do, in a dozen lines.

    Args:
        plan: The run.
        title: Said above the table.
    """
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(justify="right")
    grid.add_column(style="dim")
    for name, value, detail in rows(plan):
        grid.add_row(name, value, detail)
    return Group(Text(title, style="bold cyan"), grid) if title else grid


def describe_mixture(sources: Sequence[PlannedSource]) -> RenderableType:
    """What each phase of a run takes from each source.

    Args:
        sources: A line each.
    """
    table = Table("phase", "source", box=None, padding=(0, 2), header_style="dim")
    for heading in ("tokens", "share", "epochs by its end"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for phase, source, tokens, share, epochs, is_capped in sources:
        note = "less than its weight: max_epochs" if is_capped else ""
        table.add_row(str(phase), escape(source), quantity(tokens), f"{share:.1%}", f"{epochs:.3g}", note)
    return table


def rows(plan: RunPlan) -> list[tuple[str, str, str]]:
    """(quantity, value, how it comes about), a row each.

    Args:
        plan: The run.
    """
    p, memory = plan.parameters, plan.memory
    parts = {"embedding": p.embedding, "attention": p.attention, "feed-forward": p.feed_forward, "head": p.head}
    accumulation = plan.global_batch_size // (plan.micro_batch_size * plan.data_parallel)
    devices = f" x {plan.world_size} devices" if plan.world_size > 1 else ""
    micro_batches = f" x {accumulation} micro-batches" if accumulation > 1 else ""
    batch = f"{plan.micro_batch_size} rows{micro_batches}{devices} x {plan.sequence_length:,} tokens"
    conventions = ", ".join(f"{name} {quantity(flops)}" for name, flops in plan.flops_per_token.items())
    memories = {
        "parameters": memory.parameters,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "activations": memory.activations,
        "logits": memory.logits,
    }
    found = [
        ("parameters", quantity(p.total), ", ".join(f"{name} {quantity(n)}" for name, n in parts.items() if n)),
        ("step", f"{plan.global_batch_size * plan.sequence_length:,} tokens", batch),
        ("steps", f"{plan.num_steps:,}", ""),
        ("tokens", quantity(plan.num_tokens), f"{plan.num_tokens / p.total:.3g} a parameter"),
        ("compute", f"{plan.total_flops:.2e} FLOPs", f"a token: {conventions}"),
        ("memory", size(memory.total), ", ".join(f"{name} {size(n)}" for name, n in memories.items())),
    ]
    if plan.speed is not None and plan.seconds is not None:
        rate = f"at {quantity(plan.speed.flops_per_second)}FLOP/s a device ({plan.speed.source}), without validation"
        found.append(("time", duration(plan.seconds), rate))
    return found


def quantity(number: int | float) -> str:
    """A number with three figures and a unit prefix: 5.12M.

    Args:
        number: Not negative.
    """
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g}{prefix}"
    return f"{number:.3g}"


def size(number_of_bytes: int | float) -> str:
    """Bytes in MiB or GiB.

    Args:
        number_of_bytes: Not negative.
    """
    if number_of_bytes >= _GIB:
        return f"{number_of_bytes / _GIB:.3g} GiB"
    return f"{number_of_bytes / 2**20:.3g} MiB"


def duration(seconds: int | float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3.4 h, 5.1 days.

    Args:
        seconds: Not negative.
    """
    for unit, length, limit in (("s", 1, 100), ("min", 60, 6000), ("h", 3600, 48 * 3600)):
        if seconds < limit:
            return f"{seconds / length:.2g} {unit}" if seconds < 10 * length else f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.3g} days"
