"""The decoder (or, without causality, encoder) that every stage trains."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn

from lmstack.models.activation_checkpointing import ActivationCheckpointing, recomputation
from lmstack.models.block import Block
from lmstack.models.config import TransformerConfig
from lmstack.models.parts import (
    initial_std,
    layer_windows,
    logit_scale,
    norm_of,
    pattern_shapes,
    rotary_table,
)
from lmstack.nn.attention import CacheSlot
from lmstack.nn.feed_forward import ACTIVATIONS, Activation, FeedForward
from lmstack.nn.initialization import Role, fill_normal
from lmstack.nn.kv_cache import KVCache
from lmstack.nn.masks import AttentionPattern, build_cached_pattern, build_pattern
from lmstack.nn.norms import RMSNorm
from lmstack.nn.positions import Rotation, positions_in_documents

_is_deferred: ContextVar[bool] = ContextVar("_is_deferred", default=False)


@contextmanager
def deferred_weights() -> Iterator[None]:
    """Transformers built here have no weights yet, and know the random numbers that these would be drawn from."""
    token = _is_deferred.set(True)
    try:
        yield
    finally:
        _is_deferred.reset(token)


class Transformer(nn.Module):
    """Token ids in, hidden states out; the loss, or `logits`, multiplies them by `head_weight`.

    Args:
        config: Everything that decides the function and the initial weights.
    """

    activation_checkpointing: ActivationCheckpointing | None = None
    """What is computed again in the backward pass, as `checkpoint_activations` was told."""

    random_state: Tensor | None
    """Of torch's generator when a transformer was built on the meta device; `initial_weights` draws from there."""

    attention_kernel: Literal["auto", "sdpa", "flex"] = "auto"
    """Kernel for what needs a mask; `auto` is flex attention on CUDA and SDPA elsewhere."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self._windows = layer_windows(config)
        self._pattern_shapes = pattern_shapes(config)
        self._rotary = rotary_table(config.positions, config.channels) if config.positions.kind == "rotary" else None
        # Parts would draw weights of their own: that takes time, and random numbers that a build on meta does not.
        with torch.device("meta"):
            self._build(config)
        device = torch.device("meta") if _is_deferred.get() else torch.get_default_device()
        self.random_state = torch.get_rng_state() if device.type == "meta" else None
        # Not `to_empty`: its `empty_like` of a meta tensor imports sympy, half a second of every start.
        self._apply(  # type: ignore[no-untyped-call]
            lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        )
        self.reset_parameters()

    def set_activation(self, name: Activation) -> None:
        """Go on with another non-linearity in every feed-forward; the config says so from then on.

        Args:
            name: One of `lmstack.nn.feed_forward.ACTIVATIONS`.
        """
        self.config = replace(self.config, feed_forward=replace(self.config.feed_forward, activation=name))
        for module in self.modules():
            if isinstance(module, FeedForward):
                module.activation = ACTIVATIONS[name]

    def _build(self, config: TransformerConfig) -> None:
        self.embedding = _table(config.vocab_size, config.dim)
        if config.positions.kind == "learned":
            self.position_embedding = _table(config.max_seq_len, config.dim)
        if config.embedding_norm:
            self.embedding_norm = norm_of(config, config.dim)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        if config.norm.placement != "post":
            self.final_norm = norm_of(config, config.dim)
        if not config.tied_embeddings:
            self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.head_bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.head_bias else None

    @property
    def head_weight(self) -> Float[Tensor, "V D"]:
        """The output matrix: the embedding itself when tied."""
        return self.embedding.weight if self.config.tied_embeddings else self.head.weight

    @property
    def logit_scale(self) -> float:
        """What the head's products are multiplied by: base_dim / dim under muP, else 1."""
        return logit_scale(self.config)

    def checkpoint_activations(self, choice: ActivationCheckpointing | None) -> None:
        """Choose what blocks keep for the backward pass; before they are compiled.

        Args:
            choice: How; None keeps everything.
        """
        self.activation_checkpointing = choice
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            block.recompute = recomputation(choice, layer)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw every weight anew, as `config.initialization` says; also after `to_empty`.

        Args:
            generator: Source of randomness; None for torch's own.
        """
        std_of = initial_std(self.config)
        for role, matrix in self.matrices():
            fill_normal(matrix, std_of(role, matrix), generator)
        for module in self.modules():
            if isinstance(module, RMSNorm | nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.head_bias is not None:
            nn.init.zeros_(self.head_bias)

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        *,
        position_ids: Int[Tensor, "B T"] | None = None,
        document_ids: Int[Tensor, "B T"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Hidden states after the final norm.

        Args:
            input_ids: Tokens.
            position_ids: Where each token stands in its document. None counts from the first token of its document
                in the row; with a cache, up to the cache's extent.
            document_ids: Tokens of different documents do not see each other. None: one document a row.
            cache: Keys and values of earlier tokens; this forward's are written into it.

        Raises:
            ValueError: A row is longer than the positions or the cache, or the cache cannot be used.
        """
        if cache is None:
            layers = range(self.config.num_layers)
            return self.run_layers(None, input_ids, layers, position_ids=position_ids, document_ids=document_ids)
        num_tokens, end = input_ids.shape[1], cache.extent
        self._check(num_tokens, end, document_ids, cache)
        positions = slice(end - num_tokens, end) if position_ids is None else position_ids
        x = self._embed(input_ids, positions)
        x = self._run_blocks_cached(x, positions, self._rotation(positions, end, x.device), cache)
        return x if self.config.norm.placement == "post" else self.final_norm(x)

    def run_layers(
        self,
        x: Float[Tensor, "B T D"] | None,
        input_ids: Int[Tensor, "B T"],
        layers: range,
        *,
        position_ids: Int[Tensor, "B T"] | None = None,
        document_ids: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """A part of `forward`: neighbouring layers, the embedding before the first and the final norm after the last.

        Args:
            x: What the layer before gave; None embeds the tokens.
            input_ids: As for `forward`.
            layers: Which.
            position_ids: As for `forward`.
            document_ids: As for `forward`.

        Raises:
            ValueError: A row is longer than the positions.
        """
        num_tokens = input_ids.shape[1]
        self._check(num_tokens, num_tokens, document_ids, None)
        if position_ids is None and document_ids is not None:
            position_ids = positions_in_documents(document_ids)
        positions = slice(0, num_tokens) if position_ids is None else position_ids
        if x is None:
            x = self._embed(input_ids, positions)
        rotation = self._rotation(positions, num_tokens, x.device)
        x = self._run_blocks(x, layers, self._patterns(input_ids, document_ids), rotation)
        is_last = layers.stop == self.config.num_layers
        return self.final_norm(x) if is_last and self.config.norm.placement != "post" else x

    def logits(self, hidden: Float[Tensor, "B T D"]) -> Float32[Tensor, "B T V"]:
        """Scores of every token of the vocabulary: scaled, with bias, soft-capped, in fp32.

        Args:
            hidden: From `forward`.
        """
        logits = F.linear(hidden, self.head_weight).float()
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        if self.head_bias is not None:
            logits = logits + self.head_bias
        if self.config.logit_softcap is not None:
            logits = self.config.logit_softcap * torch.tanh(logits / self.config.logit_softcap)
        return logits

    def matrices(self) -> Iterator[tuple[Role, Tensor]]:
        """What is drawn, in the order of the draws, with what it does."""
        yield "embedding", self.embedding.weight
        if self.config.positions.kind == "learned":
            yield "embedding", self.position_embedding.weight
        for block in self.blocks:
            assert isinstance(block, Block)
            yield "query_key", block.attention.query.weight
            yield "query_key", block.attention.key.weight
            yield "value", block.attention.value.weight
            yield "residual", block.attention.output.weight
            if block.feed_forward.gate is not None:
                yield "feed_forward", block.feed_forward.gate.weight
            yield "feed_forward", block.feed_forward.up.weight
            yield "residual", block.feed_forward.down.weight
        if not self.config.tied_embeddings:
            yield "head", self.head.weight

    def _check(self, num_tokens: int, end: int, document_ids: Tensor | None, cache: KVCache | None) -> None:
        if self.config.positions.kind == "learned" and end > self.config.max_seq_len:
            raise ValueError(
                f"{end} positions, but the model learned max_seq_len={self.config.max_seq_len}. "
                "Use shorter rows, or positions that extrapolate (rotary, alibi)."
            )
        if cache is None:
            return
        if document_ids is not None:
            raise ValueError("document_ids with a cache: a cached row is one document. Leave one of them out.")
        if not self.config.causal:
            raise ValueError("A cache needs causal=True: earlier tokens must not depend on later ones.")
        if not num_tokens <= end <= cache.max_len:
            raise ValueError(
                f"cache.extent={end} must be between the forward's {num_tokens} tokens and the cache's "
                f"max_len={cache.max_len}. Set extent before the forward, or allocate a longer cache."
            )

    def _embed(self, input_ids: Int[Tensor, "B T"], positions: slice | Tensor) -> Float[Tensor, "B T D"]:
        x = self.embedding(input_ids)
        if self.config.embedding_scale:
            x = x * math.sqrt(self.config.dim)
        if self.config.positions.kind == "learned":
            table = self.position_embedding
            x = x + (table.weight[positions] if isinstance(positions, slice) else table(positions))
        if self.config.embedding_norm:
            x = self.embedding_norm(x)
        return self.dropout(x)  # type: ignore[no-any-return]

    def _rotation(self, positions: slice | Tensor, end: int, device: torch.device) -> Rotation | None:
        if self._rotary is None:
            return None
        return self._rotary.at(positions, num_positions=max(end, self.config.max_seq_len), device=device)

    def _patterns(self, input_ids: Tensor, document_ids: Tensor | None) -> dict[int | None, AttentionPattern]:
        device = input_ids.device
        kernel = self.attention_kernel
        if kernel == "auto":
            kernel = "flex" if device.type == "cuda" else "sdpa"
        batch_size, seq_len = input_ids.shape
        return {
            window: build_pattern(
                shape, batch_size=batch_size, seq_len=seq_len, device=device, document_ids=document_ids, kernel=kernel
            )
            for window, shape in self._pattern_shapes.items()
        }

    def _run_blocks(
        self, x: Tensor, layers: range, patterns: dict[int | None, AttentionPattern], rotation: Rotation | None
    ) -> Tensor:
        for layer in layers:
            x = self.blocks[layer](x, patterns[self._windows[layer]], rotation)
        return x

    def _run_blocks_cached(
        self, x: Tensor, positions: slice | Tensor, rotation: Rotation | None, cache: KVCache
    ) -> Tensor:
        if isinstance(positions, slice):
            position_ids = torch.arange(positions.start, positions.stop, device=x.device).expand(x.shape[0], -1)
        else:
            position_ids = positions
        patterns = {
            window: build_cached_pattern(shape, position_ids=position_ids, extent=cache.extent)
            for window, shape in self._pattern_shapes.items()
        }
        for layer, (block, window) in enumerate(zip(self.blocks, self._windows, strict=True)):
            x = block(x, patterns[window], rotation, CacheSlot(cache, layer, position_ids))
        return x


def _table(num_rows: int, dim: int) -> nn.Embedding:
    # Given its weight it draws none; drawing on meta imports sympy too.
    return nn.Embedding(num_rows, dim, _weight=torch.empty(num_rows, dim))
