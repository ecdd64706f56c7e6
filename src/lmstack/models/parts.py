"""A config's choices turned into the parts of `lmstack.nn`."""

import math

from torch import nn

from lmstack.models.config import RotaryConfig, TransformerConfig
from lmstack.nn.initialization import StdOf, depth_scaled, gaussian, mup, tfixup
from lmstack.nn.masks import PatternShape
from lmstack.nn.norms import RMSNorm, build_norm
from lmstack.nn.positions import (
    RotaryTable,
    alibi_slopes,
    llama3_frequencies,
    ntk_theta,
    rotary_frequencies,
    yarn_attention_factor,
    yarn_frequencies,
)


def norm_of(config: TransformerConfig, dim: int) -> RMSNorm | nn.LayerNorm:
    """The normalization that the config uses everywhere.

    Args:
        config: The transformer's config.
        dim: Channels normalized over.
    """
    return build_norm(config.norm.kind, dim, eps=config.norm.eps, bias=config.norm.bias)


def attention_scale(config: TransformerConfig) -> float:
    """What attention scores are multiplied by: 1 / sqrt(C), or sqrt(base C) / C under muP.

    Args:
        config: The transformer's config.
    """
    if config.initialization.kind == "mup":
        return math.sqrt(config.initialization.base_head_dim) / config.channels
    return 1 / math.sqrt(config.channels)


def logit_scale(config: TransformerConfig) -> float:
    """What the head's products are multiplied by: base_dim / dim under muP, else 1.

    Args:
        config: The transformer's config.
    """
    return config.initialization.base_dim / config.dim if config.initialization.kind == "mup" else 1.0


def rotary_table(positions: RotaryConfig, channels: int) -> RotaryTable:
    """The angles of rotary positions, with their long-context scaling.

    Args:
        positions: Base and scaling.
        channels: Channels C of a head.
    """
    scaling = positions.scaling
    frequencies = rotary_frequencies(channels, positions.theta)
    if scaling is None:
        return RotaryTable(frequencies)
    if scaling.kind == "linear":
        return RotaryTable(frequencies / scaling.factor)
    if scaling.kind == "ntk":
        return RotaryTable(rotary_frequencies(channels, ntk_theta(positions.theta, scaling.factor, channels)))
    if scaling.kind == "llama3":
        return RotaryTable(
            llama3_frequencies(
                frequencies,
                factor=scaling.factor,
                original_max_seq_len=scaling.original_max_seq_len,
                low_freq_factor=scaling.low_freq_factor,
                high_freq_factor=scaling.high_freq_factor,
            )
        )
    frequencies = yarn_frequencies(
        frequencies,
        theta=positions.theta,
        factor=scaling.factor,
        original_max_seq_len=scaling.original_max_seq_len,
        beta_fast=scaling.beta_fast,
        beta_slow=scaling.beta_slow,
    )
    return RotaryTable(frequencies, attention_factor=yarn_attention_factor(scaling.factor))


def layer_windows(config: TransformerConfig) -> list[int | None]:
    """The sliding window of each block; None sees all.

    Args:
        config: The transformer's config.
    """
    every = config.attention.full_every
    return [
        None if every is not None and (layer + 1) % every == 0 else config.attention.window
        for layer in range(config.num_layers)
    ]


def pattern_shapes(config: TransformerConfig) -> dict[int | None, PatternShape]:
    """The attention pattern of each window that some block has.

    Args:
        config: The transformer's config.
    """
    slopes = alibi_slopes(config.num_heads) if config.positions.kind == "alibi" else None
    return {
        window: PatternShape(config.causal, window=window, slopes=slopes, softcap=config.attention.softcap)
        for window in dict.fromkeys(layer_windows(config))
    }


def initial_std(config: TransformerConfig) -> StdOf:
    """The initialization scheme.

    Args:
        config: The transformer's config.
    """
    scheme = config.initialization
    if scheme.kind == "gaussian":
        return gaussian(scheme.std)
    if scheme.kind == "depth_scaled":
        return depth_scaled(scheme.std, config.num_layers)
    if scheme.kind == "tfixup":
        return tfixup(config.dim, config.num_layers)
    return mup(scheme.std, scheme.base_dim, config.dim)
