"""Transformers: their config, weights, sizes and costs."""

from lmstack.models.accounting import count_parameters, flops_per_token, kv_cache_bytes
from lmstack.models.checkpoint import load_transformer, load_weights_grown, save_hugging_face, save_weights
from lmstack.models.config import TransformerConfig
from lmstack.models.memory import memory_bytes
from lmstack.models.transformer import Transformer

__all__ = [
    "Transformer",
    "TransformerConfig",
    "count_parameters",
    "flops_per_token",
    "kv_cache_bytes",
    "load_transformer",
    "load_weights_grown",
    "memory_bytes",
    "save_hugging_face",
    "save_weights",
]
