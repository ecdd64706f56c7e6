"""`lmstack generate`: text from a checkpoint."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from lmstack.cli.generation_inputs import checkpoint_folder, load_engine, read_prompts

if TYPE_CHECKING:  # torch is imported once there is something to do
    from lmstack.generation import Completion, GenerationEngine, SamplingParams


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
    engine = load_engine(folder, device, dtype, weights)
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
