"""Bytes that one device holds of a step that several share."""

from dataclasses import replace

from lmstack.losses.output_head import CPU_CHUNK_ELEMENTS
from lmstack.models.accounting import count_parameters
from lmstack.models.memory import NUMBERS, MemoryEstimate, NumberBytes, activation_bytes, loss_bytes
from lmstack.planning.arrangement import ZERO_STAGES, Arrangement
from lmstack.planning.workload import Workload

DEEPSPEED_BUCKET = 200_000_000
"""Numbers that DeepSpeed sends at once: an assumption; its default is 500 million."""


def numbers_of(workload: Workload, arrangement: Arrangement) -> NumberBytes:
    """Sizes of numbers; DeepSpeed's optimizer has flat copies of the weights it updates, float32 or not.

    Args:
        workload: What is to be done.
        arrangement: Who does it.
    """
    numbers = NUMBERS[workload.precision]
    return replace(numbers, masters=4) if arrangement.strategy in ZERO_STAGES else numbers


def device_memory(workload: Workload, arrangement: Arrangement, *, is_cpu: bool = False) -> MemoryEstimate:
    """What the fullest device holds at once.

    Args:
        workload: What is to be done.
        arrangement: Who does it.
        is_cpu: Whether the loss takes smaller chunks, as it does on CPUs.
    """
    stages = {0, arrangement.layout.pipeline - 1}
    return max((_stage_memory(workload, arrangement, stage, is_cpu) for stage in stages), key=lambda m: m.total)


def weights_of_stage(workload: Workload, arrangement: Arrangement, stage: int) -> tuple[int, int]:
    """Weights of a device before they are sharded: in its blocks, and in embedding, last norm and head.

    Args:
        workload: What is to be done.
        arrangement: Who does it.
        stage: Which group of layers.
    """
    config, layout = workload.transformer, arrangement.layout
    count, num_layers = count_parameters(config), _layers(workload, arrangement, stage)
    blocks = (count.attention + count.feed_forward) * num_layers // config.num_layers // layout.tensor
    blocks += count.norms * num_layers // config.num_layers
    is_first, is_last = stage == 0, stage == layout.pipeline - 1
    holds_tie = is_last and not is_first and config.tied_embeddings
    ends = (count.embedding if is_first or holds_tie else 0) + (count.head if is_last else 0)
    return blocks, ends // layout.tensor


def _layers(workload: Workload, arrangement: Arrangement, stage: int) -> int:
    num_layers, stages = workload.transformer.num_layers, arrangement.layout.pipeline
    return num_layers * (stage + 1) // stages - num_layers * stage // stages


def _stage_memory(workload: Workload, arrangement: Arrangement, stage: int, is_cpu: bool) -> MemoryEstimate:
    config, layout, numbers = workload.transformer, arrangement.layout, numbers_of(workload, arrangement)
    num_layers = _layers(workload, arrangement, stage)
    blocks, ends = weights_of_stage(workload, arrangement, stage)
    weights = blocks + ends
    matrices = (count_parameters(config).matmul - config.vocab_size * config.dim) // config.num_layers
    own_matrices = matrices * num_layers // layout.tensor
    in_flight = min(workload.num_micro_batches(layout.data_parallel), layout.pipeline - stage)
    kept = activation_bytes(
        config,
        numbers,
        workload.activation_checkpointing,
        num_layers=num_layers,
        in_flight=in_flight,
        tensor=layout.tensor,
        sequence_parallel=arrangement.sequence_parallel,
    )
    casts = 0
    if numbers.compute < numbers.weight:  # autocast keeps its copies, also of weights that are put back
        casts = (own_matrices + config.vocab_size * config.dim // layout.tensor) * numbers.compute
    chunk = workload.loss_chunk_size
    if is_cpu:
        chunk = min(chunk, max(1, CPU_CHUNK_ELEMENTS * layout.tensor // config.vocab_size))
    held_weights, held_gradients, held_state = _held(arrangement, blocks // max(1, num_layers), ends, weights)
    states = 2 - (own_matrices / weights if workload.optimizer == "muon" else 0)
    is_last = stage == layout.pipeline - 1
    return MemoryEstimate(
        parameters=round(held_weights * numbers.weight),
        gradients=round(held_gradients * numbers.weight),
        optimizer=round(held_state * (states * numbers.state + numbers.masters))
        + (weights * numbers.weight if arrangement.strategy == "local_sgd" else 0),  # the outer momentum
        activations=workload.tokens * kept + casts,
        logits=loss_bytes(config, numbers, tokens=workload.tokens, chunk_size=chunk, tensor=layout.tensor)
        if is_last
        else 0,
    )


def _held(arrangement: Arrangement, block: int, ends: int, weights: int) -> tuple[float, float, float]:
    """Weights, gradients and optimizer states (in weights) on a device, with what is gathered or waits to be sent."""
    of_weights, of_gradients, of_state = arrangement.sharded
    whole = float(weights)
    if arrangement.strategy == "local_sgd":
        return 2 * whole, whole, whole  # the anchor
    if arrangement.strategy == "ddp":
        return whole, 2 * whole, whole  # gradients are copied into buckets
    if arrangement.strategy in ZERO_STAGES:
        bucket = min(DEEPSPEED_BUCKET, weights)
        return weights / of_weights + bucket, weights / of_gradients + bucket, weights / of_state
    if arrangement.layout.data_parallel == 1:
        return whole, whole, whole
    # The ends stay gathered until the backward is over; of the blocks, one is used and the next is on its way.
    gathered = ends + 2 * block if of_weights > 1 else 0
    return weights / of_weights + gathered, weights / of_gradients + ends + block, weights / of_state
