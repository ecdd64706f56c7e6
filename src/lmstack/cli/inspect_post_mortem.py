"""`lmstack inspect post_mortem=<folder>`: what a run was doing when it failed, and the loss of its batch again."""

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lmstack.cli.args import Arguments, Override
from lmstack.cli.failures import ConfigError

_NUM_NORMS = 8
_NUM_FRAMES = 12


def show_post_mortem(folder: Path, overrides: list[Override], num_rows: int) -> None:
    """Print the facts, the batch decoded, and its loss with the weights that were kept.

    Args:
        folder: `post_mortem/step-NNNNNNNN-rank-N` of a run.
        overrides: Changes of the run's config, such as another place of the data.
        num_rows: Rows of the batch that are shown.

    Raises:
        ConfigError: It is no post-mortem.
    """
    from rich.console import Console

    from lmstack.callbacks.post_mortem import BATCH, FACTS, TRACEBACK, WEIGHTS

    if not (folder / FACTS).is_file():
        raise ConfigError(f"post_mortem: {str(folder)!r} has no {FACTS}. Name a folder in <run>/post_mortem.")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    facts = json.loads((folder / FACTS).read_text())
    _show_facts(console, facts)
    if (folder / TRACEBACK).exists():
        console.print("\n".join(["", *(folder / TRACEBACK).read_text().splitlines()[-_NUM_FRAMES:]]), style="dim")
    if not (folder / BATCH).exists():
        console.print("\nno batch was kept: it failed between two steps, or the disk took no more")
        return
    from lmstack.cli.compose import compose
    from lmstack.cli.lean_imports import import_lightning

    config = compose(Arguments(str(folder.parents[1] / "config.yaml"), overrides)).values
    import_lightning(config)
    import torch

    batch = restored(torch.load(folder / BATCH, weights_only=True))
    _show_batch(console, config, batch, facts["step"], num_rows)
    if (folder / WEIGHTS).exists():
        console.print("")
        for line in replayed(config, folder / WEIGHTS, batch, facts):
            console.print(line)


def restored(plain: Any) -> Any:
    """A batch from the plain containers that `PostMortem` writes.

    Args:
        plain: What was written.
    """
    from lmstack.data import batch as batch_types

    if isinstance(plain, dict) and set(plain) == {"type", "fields"}:
        return getattr(batch_types, plain["type"])(**{k: restored(v) for k, v in plain["fields"].items()})
    if isinstance(plain, list):
        return [restored(value) for value in plain]
    return plain


def replayed(config: dict[str, Any], weights: Path, batches: Any, facts: dict[str, Any]) -> list[str]:
    """The loss of each micro-batch, computed again with the same weights and random numbers.

    Args:
        config: The run's.
        weights: What was kept of them.
        batches: What was kept of the step.
        facts: Seed, step, rank and precision.

    Returns:
        A line for each, or the reason why it cannot be.
    """
    import torch
    from safetensors.torch import load_file

    try:
        stage = _stage(config)
        if not hasattr(stage, "prepare_step"):
            return ["the loss of a rollout is not computed again: it depends on what was sampled"]
        stage.load_state_dict(load_file(weights))
    except (RuntimeError, ValueError) as error:  # such as a vocabulary that grew when the run was set up
        return [f"the loss cannot be computed again: {str(error).splitlines()[0]}"]
    stage.train()
    stage.base_seed = facts["base_seed"]
    stage._seed_step(facts["step"], rank=facts["rank"])
    stage.prepare_step(batches)
    is_mixed = str(facts["precision"]).startswith("bf16-mixed")
    lines = []
    for number, batch in enumerate(batches):
        with torch.autocast("cpu", torch.bfloat16) if is_mixed else nullcontext(), torch.no_grad():
            sums = stage.loss_sums(batch)
        count = int(batch.num_supervised)
        lines.append(f"micro-batch {number}: loss {float(sums.objective) / max(1, count):.6g} over {count:,}, again")
    return lines


def _stage(config: dict[str, Any]) -> Any:
    from jsonargparse import ArgumentError, ArgumentParser

    from lmstack.cli.explain import condensed
    from lmstack.cli.stage_table import load_stage

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(load_stage(config["stage"]).model, "model")
    try:
        return parser.instantiate(parser.parse_object({"model": config["model"]})).model
    except ArgumentError as error:
        raise ValueError(condensed(str(error))) from error


def _show_facts(console: Any, facts: dict[str, Any]) -> None:
    console.print(facts["error"], style="bold")
    step = f"step {facts['step']}" + (f", rollout {facts['num_rollouts']}" if facts.get("num_rollouts") else "")
    rates = ", ".join(f"{rate:g}" for rate in dict.fromkeys(facts["learning_rates"]))
    console.print(
        f"{step}, rank {facts['rank']} of {facts['world_size']} on {facts['host']}, seed {facts['base_seed']}, "
        f"{facts['precision']}, learning rate {rates or 'none yet'}"
    )
    metrics = {name: value for name, value in facts["metrics"].items() if name.startswith(("train/", "val/"))}
    console.print("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()), style="dim")
    norms = facts["gradient_norms"]
    if not norms:
        console.print("no gradients yet in this step")
        return
    broken = {name: norm for name, norm in norms.items() if not math.isfinite(norm)}
    console.print(f"gradients of {len(norms)} parameters, {len(broken)} not finite; the largest:")
    largest = sorted(norms, key=lambda name: -math.inf if name in broken else -norms[name])
    for name in largest[:_NUM_NORMS]:
        console.print(f"  {norms[name]:10.4g}  {name}")


def _show_batch(console: Any, config: dict[str, Any], batch: Any, step: int, num_rows: int) -> None:
    from lmstack.cli.inspect import data_module, show_prompts, show_rows
    from lmstack.data.batch import PromptBatch

    console.print("")
    try:
        data = data_module(config)
    except (ValueError, OSError, ConfigError) as error:
        console.print(f"the batch is not decoded, as the data is not there: {error}")
        return
    show = show_prompts if isinstance(batch, PromptBatch) else show_rows
    show(console, data, batch, step, num_rows)
