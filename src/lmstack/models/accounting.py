"""What a transformer costs: parameters, FLOPs, cache. Arithmetic on the config; nothing is built."""

from dataclasses import dataclass
from typing import Literal

from lmstack.models.config import TransformerConfig

Convention = Literal["6n", "full_attention", "causal_attention"]


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by what they are. `total = embedding + attention + feed_forward + norms + head`.

    Attributes:
        total: All of them, a tied head once.
        embedding: The token table, which is the head too when tied, and the learned positions.
        attention: Projections and their biases; query-key norms count as norms.
        feed_forward: Projections and their biases.
        norms: Gains and offsets.
        head: The untied output matrix, and the output bias.
    """

    total: int
    embedding: int
    attention: int
    feed_forward: int
    norms: int
    head: int
    matmul: int
    """What every token is multiplied by: the matrices of the blocks, and the output matrix even when it is tied."""

    @property
    def non_embedding(self) -> int:
        """N of Kaplan et al. 2020 (arXiv:2001.08361): without token and position tables and without the head."""
        return self.total - self.embedding - self.head


def count_parameters(config: TransformerConfig) -> ParameterCount:
    """Count parameters without building the model.

    Args:
        config: The transformer's config.
    """
    attention_matrices, attention_biases = _attention_size(config)
    feed_forward_matrices, feed_forward_biases = _feed_forward_size(config)
    head_matrix = config.vocab_size * config.dim
    embedding = head_matrix + (config.max_seq_len * config.dim if config.positions.kind == "learned" else 0)
    attention = config.num_layers * (attention_matrices + attention_biases)
    feed_forward = config.num_layers * (feed_forward_matrices + feed_forward_biases)
    norms = _norm_size(config)
    head = (0 if config.tied_embeddings else head_matrix) + (config.vocab_size if config.head_bias else 0)
    return ParameterCount(
        total=embedding + attention + feed_forward + norms + head,
        embedding=embedding,
        attention=attention,
        feed_forward=feed_forward,
        norms=norms,
        head=head,
        matmul=config.num_layers * (attention_matrices + feed_forward_matrices) + head_matrix,
    )


def flops_per_token(config: TransformerConfig, seq_len: int, convention: Convention) -> float:
    """FLOPs of one training token, forward and backward; recomputation under activation checkpointing not counted.

    - `6n`: 6 N, N without embeddings and head (arXiv:2001.08361, table 1, without the attention term).
    - `full_attention`: 6 FLOPs for each weight of a matrix product, the head's included, and 12 H C for each
      query-key pair, all T x T of them, masked or not (PaLM, arXiv:2204.02311, appendix B).
    - `causal_attention`: the same, but only for pairs that causality and the window let through.

    Args:
        config: The transformer's config.
        seq_len: Length T of a row; packed rows count as one document.
        convention: What counts.
    """
    count = count_parameters(config)
    if convention == "6n":
        return 6.0 * count.non_embedding
    pairs = sum(_keys_per_query(config, layer, seq_len, convention) for layer in range(config.num_layers))
    return 6.0 * count.matmul + 12.0 * config.num_heads * config.channels * pairs


def kv_cache_bytes(config: TransformerConfig, batch_size: int, seq_len: int, bytes_per_element: int) -> int:
    """Bytes of a `KVCache`.

    Args:
        config: The transformer's config.
        batch_size: Rows.
        seq_len: Slots of a row.
        bytes_per_element: 4 for fp32, 2 for bf16.
    """
    return 2 * config.num_layers * batch_size * config.kv_heads * seq_len * config.channels * bytes_per_element


def _attention_size(config: TransformerConfig) -> tuple[int, int]:
    query, keys_values = config.num_heads * config.channels, 2 * config.kv_heads * config.channels
    biases = (query + keys_values if config.attention.qkv_bias else 0) + (
        config.dim if config.attention.out_bias else 0
    )
    return config.dim * (2 * query + keys_values), biases


def _feed_forward_size(config: TransformerConfig) -> tuple[int, int]:
    hidden = config.feed_forward.hidden_dim
    inward = 2 if config.feed_forward.gated else 1
    biases = inward * hidden + config.dim if config.feed_forward.bias else 0
    return (inward + 1) * config.dim * hidden, biases


def norms_per_block(config: TransformerConfig) -> int:
    """Wide norms of a block.

    Args:
        config: The transformer's config.
    """
    return (1 if config.parallel_residual else 2) + (2 if config.norm.placement == "sandwich" else 0)


def _norm_size(config: TransformerConfig) -> int:
    outside = (config.norm.placement != "post") + config.embedding_norm
    wide = config.num_layers * norms_per_block(config) + outside
    narrow = 2 * config.num_layers if config.attention.qk_norm else 0
    return (wide * config.dim + narrow * config.channels) * (2 if config.norm.bias else 1)


def _keys_per_query(config: TransformerConfig, layer: int, seq_len: int, convention: Convention) -> float:
    """Keys that count for a query, averaged over the row."""
    if convention == "full_attention":
        return float(seq_len)
    every, window = config.attention.full_every, config.attention.window
    is_full = window is None or (every is not None and (layer + 1) % every == 0)
    reach = seq_len if is_full or window is None else min(window, seq_len)
    # Keys at distance 0 .. reach - 1 behind the query, as far as the row goes; ahead of it too without causality.
    behind = reach * seq_len - reach * (reach - 1) / 2
    ahead = 0 if config.causal else behind - seq_len
    return (behind + ahead) / seq_len
