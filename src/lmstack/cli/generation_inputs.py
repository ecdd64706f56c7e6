"""What `lmstack generate` reads: prompts, and a model from a run, a checkpoint or a Hugging Face folder."""

import difflib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch is imported once there is something to do
    from torch import Tensor

    from lmstack.generation import GenerationEngine

ADAPTERS = "adapters.safetensors"
AVERAGE_WEIGHTS = "average.safetensors"  # as callbacks.checkpoint_io writes it, which takes seconds to import


def checkpoint_folder(path: Path) -> Path:
    """The folder with weights that a path stands for.

    Args:
        path: A run's folder, a checkpoint's, or one of weights.

    Raises:
        ValueError: There is none, or it is damaged; the message lists what is there.
    """
    from lmstack.models.checkpoint_folder import MANIFEST, newest_valid_checkpoint, read_manifest

    if not path.is_dir():
        raise ValueError(f"checkpoint={path}: no such folder. {_what_is_in(path)}")
    if (path / "checkpoints").is_dir():
        newest = newest_valid_checkpoint(path)
        if newest is None:
            raise ValueError(
                f"checkpoint={path}: the run has no checkpoint that is whole. {_what_is_in(path / 'checkpoints' / '*')}"
            )
        return newest
    if not (path / "config.json").is_file():
        raise ValueError(
            f"checkpoint={path}: neither a run (no checkpoints/ in it) nor a folder of weights (no config.json). "
            + _what_is_in(path / "*")
        )
    if (path / MANIFEST).is_file():
        read_manifest(path)
    return path


def read_prompts(path: Path) -> list[str]:
    """Prompts from a file.

    Args:
        path: One a line; or .jsonl, lines of objects with a `prompt`.

    Raises:
        ValueError: There is no such file, no prompt in it, or a line without one.
    """
    if not path.is_file():
        raise ValueError(f"prompts={path}: no such file.")
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if path.suffix == ".jsonl":
        lines = [_prompt_of(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not any(lines):
        raise ValueError(f"prompts={path}: the file holds no prompt.")
    return lines


def _prompt_of(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error}).") from error
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str):
        raise ValueError(f'{where}: expected an object with a text under "prompt".')
    return prompt


def _what_is_in(path: Path) -> str:
    """What stands beside a path, with the nearest name first."""
    parent = next((folder for folder in path.parents if folder.is_dir()), Path())
    names = sorted(entry.name + "/" for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        return f"There is no folder in {parent}."
    near = difflib.get_close_matches(path.name, [name.rstrip("/") for name in names], 1)
    hint = f"Did you mean {parent / near[0]}? " if near else ""
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"{hint}Folders in {parent}: {shown}."


def load_engine(folder: Path, device: str, dtype: str | None, weights: str) -> "GenerationEngine":
    """A model with its tokenizer, ready to generate.

    Args:
        folder: From `checkpoint_folder`.
        device: Such as cpu or cuda; auto is cuda where there is one.
        dtype: Name of the type of the weights; None keeps that of the file.
        weights: `last`, or `average` for the moving average.
    """
    import torch

    from lmstack.generation import GenerationEngine
    from lmstack.models.checkpoint import load_transformer, load_weights_grown
    from lmstack.tokenization.tokenizer import Tokenizer

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = Tokenizer.load(folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder)
    transformer = load_transformer(folder, device=device, dtype=None if dtype is None else getattr(torch, dtype))
    if weights == "average":
        load_weights_grown(transformer, average_weights(folder))
    print(f"{folder}", file=sys.stderr)
    return GenerationEngine(transformer.eval(), tokenizer)


def average_weights(folder: Path) -> "dict[str, Tensor]":
    """The transformer's averaged weights: the file holds every parameter of the stage, under its full name.

    Args:
        folder: Of a checkpoint.

    Raises:
        ValueError: It holds no average.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    from lmstack.nn.lora import LoRAConfig, merged_state

    file, prefix = folder / AVERAGE_WEIGHTS, "transformer."
    if not file.is_file():
        raise ValueError(
            f"weights=average: {folder} holds no average of the weights. Use weights=last, or train with the callback "
            "lmstack.callbacks.WeightAverage."
        )
    every = load_file(file)
    state = {name.removeprefix(prefix): tensor for name, tensor in every.items() if name.startswith(prefix)}
    if not (folder / ADAPTERS).is_file():
        return state
    with safe_open(folder / ADAPTERS, "pt") as adapters:
        return merged_state(state, LoRAConfig(**json.loads(adapters.metadata()["lora"])))
