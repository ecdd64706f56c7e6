"""Bytes of a training step: weights, gradients, optimizer state, activations, the loss. Arithmetic on the config."""

from dataclasses import dataclass
from typing import Literal

from lmstack.models.accounting import count_parameters, norms_per_block
from lmstack.models.activation_checkpointing import (
    ActivationCheckpointing,
    BlockCheckpointing,
    BudgetCheckpointing,
    MatmulCheckpointing,
)
from lmstack.models.config import TransformerConfig

Precision = Literal["32-true", "bf16-mixed", "bf16-true", "bf16-true with masters"]
OptimizerKind = Literal["adamw", "muon"]


@dataclass(frozen=True)
class NumberBytes:
    """Bytes of a number under a precision.

    Attributes:
        weight: Of a weight and its gradient, and of the residual stream.
        compute: Of what matrix products read and write.
        state: Of a number of the optimizer's state.
        masters: Of an optimizer's own copy of a weight; 0 without one.
    """

    weight: int
    compute: int
    state: int
    masters: int = 0


NUMBERS: dict[Precision, NumberBytes] = {
    "32-true": NumberBytes(4, 4, 4),
    "bf16-mixed": NumberBytes(4, 2, 4),
    "bf16-true": NumberBytes(2, 2, 2),
    "bf16-true with masters": NumberBytes(2, 2, 4, masters=4),
}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one training step on one device, without the allocator's slack.

    Attributes:
        parameters: Weights.
        gradients: One for each weight.
        optimizer: Its state, and its own copy of the weights where it has one.
        activations: What the forward keeps for the backward, autocast's copies of the weights included.
        logits: What the loss holds: one chunk of logits and log-probabilities, and the head's gradient.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """Their sum."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.logits


def memory_bytes(
    config: TransformerConfig,
    *,
    micro_batch_size: int,
    seq_len: int,
    precision: Precision,
    optimizer: OptimizerKind,
    activation_checkpointing: ActivationCheckpointing | None,
    loss_chunk_size: int = 4096,
) -> MemoryEstimate:
    """Bytes that a training step needs on one device that holds the whole model.

    Assumes a fused attention kernel, which never writes out the T x T scores, and eager execution.

    Args:
        config: The transformer's config.
        micro_batch_size: Rows of one forward.
        seq_len: Length T of a row.
        precision: Lightning's name for it.
        optimizer: Which.
        activation_checkpointing: What is kept of a block; None is everything.
        loss_chunk_size: Tokens whose logits exist at once.
    """
    count, numbers = count_parameters(config), NUMBERS[precision]
    tokens = micro_batch_size * seq_len
    kept = activation_bytes(config, numbers, activation_checkpointing, num_layers=config.num_layers)
    return MemoryEstimate(
        parameters=count.total * numbers.weight,
        gradients=count.total * numbers.weight,
        optimizer=optimizer_bytes(config, numbers, optimizer),
        activations=tokens * kept + autocast_bytes(config, numbers),
        logits=loss_bytes(config, numbers, tokens=tokens, chunk_size=loss_chunk_size),
    )


def optimizer_bytes(config: TransformerConfig, numbers: NumberBytes, optimizer: OptimizerKind) -> int:
    """Bytes of an optimizer's state for the whole model.

    Args:
        config: The transformer's config.
        numbers: Sizes of numbers.
        optimizer: AdamW keeps two numbers a weight; Muon one for a matrix of the blocks, and AdamW's two for the rest.
    """
    count = count_parameters(config)
    matrices = count.matmul - config.vocab_size * config.dim
    num_states = 2 * count.total - (matrices if optimizer == "muon" else 0)
    return num_states * numbers.state + count.total * numbers.masters


def autocast_bytes(config: TransformerConfig, numbers: NumberBytes, *, tensor: int = 1) -> int:
    """Bytes of the copies of the matrices that autocast makes once a forward and keeps for the backward.

    Args:
        config: The transformer's config.
        numbers: Sizes of numbers.
        tensor: Over how many devices every matrix is split.
    """
    return count_parameters(config).matmul * numbers.compute // tensor if numbers.compute < numbers.weight else 0


def loss_bytes(
    config: TransformerConfig, numbers: NumberBytes, *, tokens: int, chunk_size: int, tensor: int = 1
) -> int:
    """Bytes that the chunked loss holds beside the activations.

    Args:
        config: The transformer's config.
        numbers: Sizes of numbers.
        tokens: Of a forward.
        chunk_size: Tokens whose logits exist at once.
        tensor: Over how many devices the vocabulary is split.
    """
    products = numbers.compute if numbers.compute < 4 else 0  # float32 takes the place of its own products
    chunk = min(chunk_size, tokens) * config.vocab_size * (4 + 4 + products)
    head_gradient = 4 * config.vocab_size * config.dim
    hidden = 2 * tokens * config.dim * numbers.compute  # a masked copy, and its gradient
    return (chunk + head_gradient) // tensor + hidden


def activation_bytes(
    config: TransformerConfig,
    numbers: NumberBytes,
    checkpointing: ActivationCheckpointing | None,
    *,
    num_layers: int,
    in_flight: int = 1,
    tensor: int = 1,
    sequence_parallel: bool = False,
) -> int:
    """Bytes a token that blocks and the final norm keep for the backward pass, and what its first block needs again.

    Args:
        config: The transformer's config.
        numbers: Sizes of numbers.
        checkpointing: What is kept of a block; None is everything.
        num_layers: Blocks on the device.
        in_flight: Micro-batches that have gone forward and not yet back.
        tensor: Over how many devices each block is split (arXiv:2205.05198, section 4.1).
        sequence_parallel: Whether the residual stream is split too (the same, eq. 4).
    """
    stream_share = tensor if sequence_parallel else 1
    stream = config.dim * numbers.weight // stream_share
    whole, products = (each(config, numbers, tensor, stream_share) for each in (_block_bytes, _block_bytes_of_matmuls))
    if checkpointing is None:
        kept, computed_again = num_layers * whole, 0
    elif isinstance(checkpointing, BlockCheckpointing):
        few = num_layers // checkpointing.every
        kept, computed_again = few * stream + (num_layers - few) * whole, whole if few else 0
    elif isinstance(checkpointing, MatmulCheckpointing):
        kept, computed_again = num_layers * products, whole - products
    elif isinstance(checkpointing, BudgetCheckpointing):
        kept = round(num_layers * (stream + checkpointing.fraction * (whole - stream)))
        computed_again = round((1 - checkpointing.fraction) * whole)
    else:
        kept, computed_again = num_layers * stream, whole
    return in_flight * kept + computed_again + 2 * stream  # the final norm's input and output


def _block_bytes(config: TransformerConfig, numbers: NumberBytes, tensor: int, stream_share: int) -> int:
    """Bytes a token that one block keeps when nothing is computed again."""
    query, key_value = config.num_heads * config.channels, config.kv_heads * config.channels
    hidden = config.feed_forward.hidden_dim * (4 if config.feed_forward.gated else 2)
    # Each norm keeps its input; the two branches keep their (cast) input, attention its q, k, v and output.
    stream = norms_per_block(config) * config.dim * numbers.weight // stream_share
    branch_inputs = (1 if config.parallel_residual else 2) * config.dim * numbers.compute
    split = (2 * query + 2 * key_value + hidden) * numbers.compute + 4 * config.num_heads  # and the log-sum-exps
    qk_norm = (query + key_value) * numbers.compute if config.attention.qk_norm else 0
    dropout = 2 * config.dim if config.dropout else 0  # one byte a mask element
    return stream + branch_inputs + (split + qk_norm) // tensor + dropout


def _block_bytes_of_matmuls(config: TransformerConfig, numbers: NumberBytes, tensor: int, stream_share: int) -> int:
    """The same when only its input, and the results of matrix products and attention are kept."""
    query, key_value = config.num_heads * config.channels, config.kv_heads * config.channels
    inward = config.feed_forward.hidden_dim * (2 if config.feed_forward.gated else 1)
    split = (2 * query + 2 * key_value + inward) * numbers.compute + 4 * config.num_heads
    return config.dim * numbers.weight // stream_share + 2 * config.dim * numbers.compute + split // tensor
