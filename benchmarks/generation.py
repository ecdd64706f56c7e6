"""Decode speed: the generation engine, a loop without a cache, and transformers' `generate`, on the same weights.

    python benchmarks/generation.py                      # prints a table
    python benchmarks/generation.py --output benchmarks/results/generation.json

A Llama-shaped model with random weights, greedy, one thread. Before anything is timed, the three must produce the same
tokens. What is measured is processor time, which with one thread is the time on an idle machine; repeats are
interleaved and medians compared. The ratios are what to read.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from lmstack.generation import GenerationEngine, SamplingParams
from lmstack.models.config import DenseConfig, GaussianInit, RotaryConfig, TransformerConfig
from lmstack.models.families import to_hugging_face
from lmstack.models.transformer import Transformer

CONFIG = TransformerConfig(
    vocab_size=4096,
    max_seq_len=512,
    dim=256,
    num_layers=6,
    num_heads=8,
    num_kv_heads=4,
    positions=RotaryConfig(),
    feed_forward=DenseConfig(hidden_dim=704),
    initialization=GaussianInit(std=0.06),  # wide enough that no two logits nearly tie
)

Tokens = list[list[int]]
Generate = Callable[[Tokens, int], Tokens]


def with_engine(transformer: Transformer) -> Generate:
    """The engine."""
    engine = GenerationEngine(transformer, None)

    def run(prompts: Tokens, num_tokens: int) -> Tokens:
        completions = engine.generate(prompts, SamplingParams(max_new_tokens=num_tokens, temperature=0.0))
        return [completion.token_ids for completion in completions]

    return run


def without_cache(transformer: Transformer) -> Generate:
    """The whole text through the model for every token."""

    @torch.no_grad()
    def run(prompts: Tokens, num_tokens: int) -> Tokens:
        ids = torch.tensor(prompts)
        for _ in range(num_tokens):
            logits = transformer.logits(transformer(ids)[:, -1:])
            ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        return ids[:, len(prompts[0]) :].tolist()

    return run


def with_transformers(transformer: Transformer) -> Generate:
    """The same weights in `transformers`, with its dynamic cache."""
    config, state = to_hugging_face(CONFIG, transformer.state_dict())
    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in config.items() if k != "architectures"})).eval()
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    @torch.no_grad()
    def run(prompts: Tokens, num_tokens: int) -> Tokens:
        ids = torch.tensor(prompts)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_tokens)
        return out[:, ids.shape[1] :].tolist()

    return run


def measure(
    contenders: dict[str, Generate], batch_size: int, prompt_len: int, num_tokens: int, repeats: int
) -> dict[str, float]:
    """Generated tokens a second, prefill included.

    Raises:
        ValueError: The contenders do not generate the same tokens.
    """
    generator = torch.Generator().manual_seed(batch_size)
    prompts = torch.randint(CONFIG.vocab_size, (batch_size, prompt_len), generator=generator).tolist()
    outputs = {name: run(prompts, num_tokens) for name, run in contenders.items()}
    reference = next(iter(outputs.values()))
    for name, output in outputs.items():
        if output != reference:
            raise ValueError(
                f"{name} generates other tokens than {next(iter(outputs))}: the timings would not compare."
            )
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            start = time.process_time()
            run(prompts, num_tokens)
            seconds[name].append(time.process_time() - start)
    return {name: batch_size * num_tokens / statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt-len", type=int, default=32)
    parser.add_argument("--num-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformer = Transformer(CONFIG).eval()
    contenders = {
        "engine": with_engine(transformer),
        "transformers": with_transformers(transformer),
        "no cache": without_cache(transformer),
    }
    num_parameters = sum(parameter.numel() for parameter in transformer.parameters())
    lengths = f"{arguments.prompt_len} prompt + {arguments.num_tokens} new tokens"
    print(f"{num_parameters / 1e6:.1f}M parameters, {lengths}, fp32, one thread")
    results = []
    for batch_size in arguments.batch_sizes:
        speeds = measure(contenders, batch_size, arguments.prompt_len, arguments.num_tokens, arguments.repeats)
        for name, speed in speeds.items():
            ratio = speeds["engine"] / speed
            print(f"batch {batch_size:3}  {name:12}  {speed:9.1f} tokens/s   engine is {ratio:5.2f}x as fast")
            results.append({"batch_size": batch_size, "what": name, "tokens_per_second": speed, "engine_ratio": ratio})
    if arguments.output is not None:
        record = {
            "command": "python " + " ".join(sys.argv),
            "parameters": num_parameters,
            "prompt_len": arguments.prompt_len,
            "num_tokens": arguments.num_tokens,
            "torch": torch.__version__,
            "platform": platform.machine(),
            "results": results,
        }
        arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
