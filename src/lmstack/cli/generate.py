"""`lmstack generate`: text from a checkpoint."""

import difflib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:  # torch is imported once there is something to do
    from torch import Tensor

    from lmstack.generation import Completion, GenerationEngine, SamplingParams

ADAPTERS = "adapters.safetensors"
AVERAGE_WEIGHTS = "average.safetensors"  # as callbacks.checkpoint_io writes it, which takes seconds to import


def generate(
    *,
    checkpoint: str,
    prompt: str | None = None,
    prompts: str | None = None,
    output: str | None = None,
    num_samples: int = 1,
    max_new_tokens: int = 128,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: list[str] | None = None,
    seed: int = 0,
    batch_size: int = 16,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    weights: Literal["last", "average"] = "last",
) -> None:
    """Continue a prompt and stream the text; or continue many and write them to a file.

    Without `prompt` and `prompts` the prompt is read from standard input; in a terminal, one by one until Ctrl-D.

    Args:
        checkpoint: A run's folder (its newest checkpoint), a checkpoint's folder, or a Hugging Face model's folder.
        prompt: Text to continue; empty starts a document.
        prompts: File of prompts: one a line, or .jsonl with a "prompt" in each line.
        output: Write the samples to this .jsonl file instead of printing them.
        num_samples: Samples of each prompt, with seeds from `seed` on.
        max_new_tokens: Length of a sample in tokens, unless the document or the model's context ends before.
        temperature: 0 takes the most probable token.
        top_k: Sample from the k most probable tokens; null from all.
        top_p: Sample from the fewest tokens that together have this probability; null from all.
        min_p: Sample from tokens at least this probable beside the most probable one; null from all.
        repetition_penalty: Above 1 lowers tokens that occurred already.
        stop: End before the first of these strings.
        seed: The same seed gives the same sample.
        batch_size: Samples generated at once when there are several.
        device: Such as cpu or cuda; auto is cuda where there is one.
        dtype: Type of the weights; null keeps that of the file.
        weights: The checkpoint's own, or the moving average that the weight-average callback kept in it.
    """
    for name, number in (("num_samples", num_samples), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name}={number}: must be at least 1.")
    if prompt is not None and prompts is not None:
        raise ValueError("prompt and prompts are both given: choose one.")
    if output is not None and Path(output).exists():
        raise ValueError(f"output={output}: the file exists already. Remove it, or choose another name.")
    texts = None if prompts is None else read_prompts(Path(prompts))
    folder = checkpoint_folder(Path(checkpoint))
    from lmstack.generation import SamplingParams

    params = SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop_strings=tuple(stop or ()),
        seed=seed,
    )
    engine = _load(folder, device, dtype, weights)
    if engine.tokenizer is not None and engine.tokenizer.eot_id is not None:
        params = replace(params, stop_ids=(engine.tokenizer.eot_id,))
    if texts is None and prompt is None and sys.stdin.isatty() and output is None:
        _converse(engine, params)
        return
    if texts is None:
        texts = [sys.stdin.read() if prompt is None else prompt]
    if len(texts) == 1 and num_samples == 1 and output is None:
        _stream(engine, texts[0], params)
        return
    requests = [(text, replace(params, seed=seed + i)) for text in texts for i in range(num_samples)]
    if output is None:
        _write(engine, requests, batch_size, None)
    else:
        with Path(output).open("x", encoding="utf-8") as file:
            _write(engine, requests, batch_size, file)


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


def _load(folder: Path, device: str, dtype: str | None, weights: str) -> "GenerationEngine":
    import torch

    from lmstack.generation import GenerationEngine
    from lmstack.models.checkpoint import load_transformer, load_weights_grown
    from lmstack.tokenization.tokenizer import Tokenizer

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = Tokenizer.load(folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder)
    transformer = load_transformer(folder, device=device, dtype=None if dtype is None else getattr(torch, dtype))
    if weights == "average":
        load_weights_grown(transformer, _average(folder))
    print(f"{folder}", file=sys.stderr)
    return GenerationEngine(transformer.eval(), tokenizer)


def _average(folder: Path) -> "dict[str, Tensor]":
    """The transformer's averaged weights: the file holds every parameter of the stage, under its full name."""
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


def _stream(engine: "GenerationEngine", prompt: str, params: "SamplingParams") -> None:
    ids = engine.encode_prompt(prompt)
    show = _Screen()
    show(prompt, is_prompt=True)
    start = time.perf_counter()
    completion = yield_all(engine.stream(ids, params), show)
    print(flush=True)
    _report(len(completion.token_ids), time.perf_counter() - start, f", {_REASONS[completion.stop_reason]}")


def yield_all(stream: Any, show: Any) -> "Completion":
    """Show every piece of a stream.

    Args:
        stream: From `GenerationEngine.stream`.
        show: Called with each piece.

    Returns:
        What the stream returns at its end.
    """

    def pieces() -> Iterator[str]:
        nonlocal completion
        completion = yield from stream

    completion: Any = None
    for piece in pieces():
        show(piece)
    return completion  # type: ignore[no-any-return]


def _converse(engine: "GenerationEngine", params: "SamplingParams") -> None:
    print("A prompt, then Enter; Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            print(file=sys.stderr)
            return
        try:
            _stream(engine, prompt, params)
        except ValueError as error:  # a prompt that is too long, or empty: say so and go on
            print(f"lmstack: error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print()


def _write(
    engine: "GenerationEngine", requests: list[tuple[str, "SamplingParams"]], batch_size: int, file: TextIO | None
) -> None:
    show, start, num_tokens = _Screen(), time.perf_counter(), 0
    encoded = [engine.encode_prompt(text) for text, _ in requests]
    for first in range(0, len(requests), batch_size):
        chosen = slice(first, first + batch_size)
        completions = engine.generate(encoded[chosen], [params for _, params in requests[chosen]])
        for (text, params), completion in zip(requests[chosen], completions, strict=True):
            num_tokens += len(completion.token_ids)
            if file is None:
                show(text, is_prompt=True)
                show(completion.text + "\n\n")
            else:
                file.write(json.dumps(_row(text, params, completion), ensure_ascii=False) + "\n")
        if file is not None:
            file.flush()
            print(f"{min(first + batch_size, len(requests))}/{len(requests)} samples", file=sys.stderr)
    _report(num_tokens, time.perf_counter() - start, f", {len(requests)} samples")


def _row(prompt: str, params: "SamplingParams", completion: "Completion") -> dict[str, Any]:
    return {
        "prompt": prompt,
        "completion": completion.text,
        "seed": params.seed,
        "num_tokens": len(completion.token_ids),
        "sum_log_prob": sum(completion.token_log_probs),
        "stop_reason": completion.stop_reason,
    }


def _report(num_tokens: int, seconds: float, more: str) -> None:
    print(f"{num_tokens} tokens in {seconds:.2f} s, {num_tokens / seconds:.1f} tokens/s{more}", file=sys.stderr)


_REASONS = {
    "length": "stopped at max_new_tokens",
    "stop_id": "the document ended",
    "stop_string": "a stop string came",
    "context": "the model's context is full",
}


class _Screen:
    """Standard output: in a terminal the prompt is bold, and what could drive the terminal is escaped."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty()

    def __call__(self, text: str, *, is_prompt: bool = False) -> None:
        if self.is_terminal:
            from lmstack.data.rendering import visible

            text = f"\033[1m{visible(text)}\033[0m" if is_prompt else visible(text)
        print(text, end="", flush=True)
