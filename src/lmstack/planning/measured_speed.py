"""How fast this machine trains a model of this shape: a few steps of a slice of it, timed."""

import contextlib
import dataclasses
import time

import torch

from lmstack.losses.language_modeling import chunked_cross_entropy_sum
from lmstack.models.accounting import count_parameters, flops_per_token
from lmstack.models.config import TransformerConfig
from lmstack.models.transformer import Transformer
from lmstack.planning.run_plan import Speed

MAX_SLICE_PARAMETERS = 20_000_000
MAX_TOKENS = 1024  # on a CPU; a GPU needs more to be busy
MAX_TOKENS_GPU = 16384


def measure_speed(
    config: TransformerConfig,
    *,
    micro_batch_size: int,
    sequence_length: int,
    precision: str,
    device: torch.device | str = "cpu",
    budget_seconds: float = 0.25,
) -> Speed:
    """Time forward and backward of as many layers as fit a small budget.

    Random state is left as it was.

    Args:
        config: The transformer's config.
        micro_batch_size: Rows of a forward.
        sequence_length: Tokens of a row.
        precision: As Lightning names it.
        device: Where.
        budget_seconds: Stop repeating after this much time.
    """
    device = torch.device(device)
    slice_config = sliced(config)
    max_tokens = MAX_TOKENS if device.type == "cpu" else MAX_TOKENS_GPU
    length = min(sequence_length, config.max_seq_len, max_tokens)
    rows = max(1, min(micro_batch_size, max_tokens // length))
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float32
    mixed = precision.endswith("mixed") or precision == "bf16"
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        transformer = Transformer(slice_config).to(device=device, dtype=torch.float32 if mixed else dtype)
        tokens = torch.randint(slice_config.vocab_size, (rows, length + 1)).to(device)
        seconds = _best_step(transformer, tokens, torch.bfloat16 if mixed else None, budget_seconds)
    flops = flops_per_token(slice_config, length, "causal_attention") * rows * length
    layers = f"{slice_config.num_layers} of {config.num_layers} layers, {rows * length:,} tokens, {precision}"
    return Speed(flops / seconds, f"measured here: {layers}")


def sliced(config: TransformerConfig) -> TransformerConfig:
    """The same shape with as many layers as fit the budget, at least one, and a vocabulary that does.

    Args:
        config: The transformer's config.
    """
    vocab_size = min(config.vocab_size, max(256, MAX_SLICE_PARAMETERS // (2 * config.dim)))
    smaller = dataclasses.replace(config, vocab_size=vocab_size, num_layers=1)
    one, two = (count_parameters(dataclasses.replace(smaller, num_layers=n)).total for n in (1, 2))
    fitting = 1 + max(0, MAX_SLICE_PARAMETERS - one) // (two - one)
    return dataclasses.replace(smaller, num_layers=min(config.num_layers, fitting))


def _best_step(
    transformer: Transformer, tokens: torch.Tensor, autocast: torch.dtype | None, budget_seconds: float
) -> float:
    best, started = float("inf"), time.perf_counter()
    for repeat in range(20):
        begin = time.perf_counter()
        precision = torch.autocast(tokens.device.type, autocast) if autocast else contextlib.nullcontext()
        with precision:
            hidden = transformer(tokens[:, :-1])
            sums = chunked_cross_entropy_sum(hidden, transformer.head_weight, tokens[:, 1:], chunk_size=4096)
        torch.autograd.backward(sums.cross_entropy)
        if tokens.device.type == "cuda":
            torch.cuda.synchronize(tokens.device)
        transformer.zero_grad()
        now = time.perf_counter()
        if repeat > 0:  # the first one allocates
            best = min(best, now - begin)
        if repeat > 0 and now - started > budget_seconds:
            break
    return best
