"""`lmstack inspect`: what a training step is fed, or was fed when it failed, as a person reads it."""

from pathlib import Path
from typing import Any

from lmstack.cli.args import Arguments, parse_arguments
from lmstack.cli.failures import ConfigError

HELP = """\
usage: lmstack inspect --config conf/<name>.yaml [key=value ...] [batch=0 | spike=0] [rows=2]
       lmstack inspect post_mortem=<run>/post_mortem/<folder> [key=value ...] [rows=2]

Shows the batch of an optimizer step, decoded: documents with their ids and positions, ⟦supervised⟧ tokens, counts;
for preferences which answer is better, for reinforcement learning the prompts.

  batch=0   which optimizer step, counted from 0 (as one process would see it)
  spike=0   the step of a decision of the spike guard: the number of a line in the run folder's spikes.jsonl
  rows=2    how many of its rows

With post_mortem, what a run was doing when it failed: the exception, gradient norms, the batch; and the loss of the
batch, computed again with the weights and random numbers of that moment.
"""


def main(argv: list[str]) -> int:
    """Show a batch.

    Args:
        argv: What follows `lmstack inspect`.

    Returns:
        The exit status.
    """
    arguments = parse_arguments(argv)
    if arguments.wants_help:
        print(HELP, end="")
        return 0
    batch, spike, rows = (_taken(arguments, name) for name in ("batch", "spike", "rows"))
    num_rows = 2 if rows is None else rows
    post_mortem = next((o for o in arguments.overrides if o.key == "post_mortem"), None)
    if sum(chosen is not None for chosen in (batch, spike, post_mortem)) > 1:
        raise ConfigError("batch, spike and post_mortem each name a step: give one of them.")
    if post_mortem is not None:
        from lmstack.cli.inspect_post_mortem import show_post_mortem

        arguments.overrides.remove(post_mortem)
        show_post_mortem(Path(post_mortem.value or ""), arguments.overrides, num_rows)
        return 0
    from lmstack.cli.compose import compose
    from lmstack.cli.lean_imports import import_lightning
    from lmstack.run_record import read_changes

    config = compose(arguments).values
    import_lightning(config)
    data, folder = data_module(config), Path((config.get("trainer") or {}).get("default_root_dir") or ".")
    for change in read_changes(folder):
        if change.get("key") == "data.weights":
            data.add_phase(data.samples_at_step(change["step"]), change["to"])
    if spike is None:
        show_step(data, batch or 0, num_rows)
    else:
        show_spike(data, _decision(folder, spike), num_rows)
    return 0


def data_module(config: dict[str, Any]) -> Any:
    """The data module of a composed config, set up, without a trainer.

    Args:
        config: The composed config.

    Raises:
        ConfigError: A key or value of `data` is wrong.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    from lmstack.cli.explain import condensed, mistakes
    from lmstack.cli.stage_table import load_stage

    if wrong := [line for line in mistakes(config) if line.startswith("data")]:
        raise ConfigError("\n".join(wrong))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(load_stage(config["stage"]).data, "data")
    try:
        data = parser.instantiate(parser.parse_object({"data": config["data"]})).data
    except ArgumentError as error:
        raise ConfigError(condensed(str(error))) from error
    data.setup("fit")
    return data


def show_step(data: Any, step: int, num_rows: int) -> None:
    """Print the first rows of an optimizer step.

    Args:
        data: A data module that is set up.
        step: Which step, from 0.
        num_rows: How many rows.

    Raises:
        ValueError: The run has no such step.
    """
    loader = data.train_dataloader()
    if step >= len(loader):
        raise ValueError(f"batch={step}: the run has {len(loader)} optimizer steps. Use 0 to {len(loader) - 1}.")
    loader.load_state_dict({**loader.state_dict(), "samples_seen": data.samples_at_step(step)})
    _show(data, next(iter(loader)), step, num_rows)


def show_spike(data: Any, decision: dict[str, Any], num_rows: int) -> None:
    """Print what the spike guard decided of a step, where its rows come from, and the first of them.

    Args:
        data: A data module that is set up.
        decision: A line of `spikes.jsonl` that names rows it skipped.
        num_rows: How many rows.
    """
    loader = data.train_dataloader()
    place = {name: decision[name] for name in ("samples_seen", "skipped")}
    loader.load_state_dict({**loader.state_dict(), **place})
    print(", ".join(f"{name} {value}" for name, value in decision.items() if name not in ("origins", *place)))
    for origin in decision.get("origins", []):
        print("  " + ", ".join(f"{name} {value}" for name, value in origin.items()))
    _show(data, next(iter(loader)), decision["step"] - 1, num_rows)


def _decision(folder: Path, number: int) -> dict[str, Any]:
    """A line of the run's decisions that says which rows were skipped."""
    from lmstack.run_record import SPIKES, read_lines

    found = {line["decision"]: line for line in read_lines(folder / SPIKES)}
    if number not in found:
        raise ConfigError(f"spike={number}: {folder / SPIKES} has {len(found)} decisions. Name the run's own config.")
    if "samples_seen" not in found[number]:
        skips = [str(n) for n, line in found.items() if "samples_seen" in line]
        raise ConfigError(f"spike={number}: this is a {found[number]['action']}. Skipped steps are {', '.join(skips)}.")
    return found[number]


def _show(data: Any, taken: Any, step: int, num_rows: int) -> None:
    from rich.console import Console

    from lmstack.data.batch import PromptBatch

    console = Console(highlight=False, markup=False, soft_wrap=True)
    if isinstance(taken, PromptBatch):
        show_prompts(console, data, taken, step, num_rows)
    else:
        show_rows(console, data, taken, step, num_rows)


def show_rows(console: Any, data: Any, batches: list[Any], step: int, num_rows: int) -> None:
    """Print rows of micro-batches.

    Args:
        console: Where to.
        data: A data module with the tokenizer.
        batches: Micro-batches.
        step: Which optimizer step, for the heading.
        num_rows: How many rows.
    """
    from lmstack.data.batch import PreferenceBatch
    from lmstack.data.rendering import LEGEND, count_rows, render_row

    rows = [(batch, row, counts) for batch in batches for row, counts in enumerate(count_rows(batch))]
    total = {
        name: sum(getattr(counts, f"num_{name}") for _, _, counts in rows)
        for name in ("tokens", "supervised", "documents", "bytes")
    }
    console.print(
        f"step {step}: {len(batches)} micro-batches, {len(rows)} rows, {total['tokens']:,} tokens, "
        f"{total['supervised']:,} supervised, {total['documents']:,} documents, {total['bytes']:,} bytes\n{LEGEND}"
    )
    for number, (batch, row, counts) in enumerate(rows[:num_rows]):
        is_answer = isinstance(batch, PreferenceBatch)
        rest = _standing(batch, row) if is_answer else f"{counts.num_documents:,} documents, {counts.num_bytes:,} bytes"
        console.print(
            f"\nrow {number}: {counts.num_tokens:,} tokens, {counts.num_supervised:,} supervised, {rest}", style="bold"
        )
        console.print(render_row(batch, row, data.tokenizer), end="")


def _standing(batch: Any, row: int) -> str:
    """Which prompt an answer answers, and how it compares."""
    if bool(batch.demonstration[row]):
        return "a demonstration"
    wins, losses = int((batch.better == row).sum()), int((batch.worse == row).sum())
    label = {1: ", wanted", -1: ", unwanted"}.get(int(batch.desirability[row]), "")
    return f"prompt {int(batch.group[row])}: better than {wins} and worse than {losses} of its answers{label}"


def show_prompts(console: Any, data: Any, batch: Any, step: int, num_rows: int) -> None:
    """Print prompts of a rollout.

    Args:
        console: Where to.
        data: A data module with the tokenizer.
        batch: The prompts.
        step: Which rollout, for the heading.
        num_rows: How many prompts.
    """
    from lmstack.data.rendering import visible

    total = sum(map(len, batch.prompts))
    console.print(f"step {step}: {len(batch.prompts)} prompts, {total:,} tokens")
    for number, (ids, row) in enumerate(list(zip(batch.prompts, batch.rows, strict=True))[:num_rows]):
        console.print(f"\nprompt {number}: {len(ids):,} tokens, {row['source_line']}", style="bold")
        console.print(visible(data.tokenizer.decode(ids)))
        others = {name: value for name, value in row.items() if name != "source_line"}
        console.print(f"── its row: {visible(str(others))[:300]}", style="dim")


def _taken(arguments: Arguments, name: str) -> int | None:
    """The value of an argument of this command, removed from the overrides; None where it is not given."""
    for override in arguments.overrides:
        if override.key == name:
            arguments.overrides.remove(override)
            if override.value is None or not override.value.isdecimal():
                raise ConfigError(f"{name}: expected a number from 0 on, got {override.value!r}")
            return int(override.value)
    return None
