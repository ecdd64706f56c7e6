"""Transformers: their config, weights, sizes and costs."""

from lmstack.models.config import TransformerConfig
from lmstack.models.transformer import Transformer

__all__ = ["Transformer", "TransformerConfig"]
