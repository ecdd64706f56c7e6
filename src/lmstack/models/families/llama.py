"""Llama's layout: half-split rotary, RMS norms, gated feed-forward, grouped-query attention."""

import math
from typing import Any

from torch import Tensor

from lmstack.models.config import (
    AttentionConfig,
    DenseConfig,
    GaussianInit,
    LinearScaling,
    Llama3Scaling,
    NormConfig,
    NTKScaling,
    RotaryConfig,
    TransformerConfig,
    YarnScaling,
)
from lmstack.nn.positions import ntk_theta

_ACTIVATIONS = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
_BLOCK_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
}


def config_from_hugging_face(hf: dict[str, Any]) -> TransformerConfig:
    """Our config of a `LlamaConfig`. Dropout, a matter of training, is not taken over.

    Args:
        hf: Its `config.json`.

    Raises:
        ValueError: An option is not known here.
    """
    activation = hf.get("hidden_act", "silu")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"hidden_act={activation!r}: must be one of {', '.join(_ACTIVATIONS)}.")
    bias = hf.get("attention_bias", False)
    return TransformerConfig(
        vocab_size=hf["vocab_size"],
        max_seq_len=hf["max_position_embeddings"],
        dim=hf["hidden_size"],
        num_layers=hf["num_hidden_layers"],
        num_heads=hf["num_attention_heads"],
        num_kv_heads=hf.get("num_key_value_heads"),
        head_dim=hf.get("head_dim"),
        positions=_positions_from(hf),
        feed_forward=DenseConfig(
            hf["intermediate_size"],
            activation=_ACTIVATIONS[activation],  # type: ignore[arg-type]
            gated=True,
            bias=hf.get("mlp_bias", False),
        ),
        initialization=GaussianInit(hf.get("initializer_range", 0.02)),
        attention=AttentionConfig(qkv_bias=bias, out_bias=bias),
        norm=NormConfig(kind="rms", eps=hf.get("rms_norm_eps", 1e-6)),
        tied_embeddings=hf.get("tie_word_embeddings", False),
    )


def misfits(config: TransformerConfig) -> list[str]:
    """What keeps a config from being a Llama; empty when it is one.

    Args:
        config: Our config.
    """
    checks = {
        "positions=rotary": config.positions.kind == "rotary",
        "norm.kind=rms": config.norm.kind == "rms",
        "norm.placement=pre": config.norm.placement == "pre",
        "feed_forward.gated=True": config.feed_forward.gated,
        "an activation other than relu2": config.feed_forward.activation != "relu2",
        "attention.qkv_bias=out_bias": config.attention.qkv_bias == config.attention.out_bias,
        "no qk_norm": not config.attention.qk_norm,
        "no window": config.attention.window is None,
        "no soft-cap": config.attention.softcap is None and config.logit_softcap is None,
        "no parallel_residual": not config.parallel_residual,
        "no head_bias": not config.head_bias,
        "no embedding_norm or embedding_scale": not config.embedding_norm and not config.embedding_scale,
        "causal=True": config.causal,
        "no muP multipliers": config.initialization.kind != "mup",
    }
    return [need for need, is_met in checks.items() if not is_met]


def config_to_hugging_face(config: TransformerConfig) -> dict[str, Any]:
    """The `config.json` of a Llama with our shape.

    Args:
        config: One without `misfits`.
    """
    names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    theta, rope = _rope_to(config)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "hidden_size": config.dim,
        "intermediate_size": config.feed_forward.hidden_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.channels,
        "hidden_act": names[config.feed_forward.activation],
        "rms_norm_eps": config.norm.eps,
        # transformers 5 reads rope_parameters, earlier ones rope_theta and rope_scaling.
        "rope_parameters": {"rope_theta": theta, "rope_type": "default", **rope},
        "rope_theta": theta,
        "rope_scaling": rope or None,
        "attention_bias": config.attention.qkv_bias,
        "mlp_bias": config.feed_forward.bias,
        "initializer_range": getattr(config.initialization, "std", 0.02),
        "tie_word_embeddings": config.tied_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def state_from_hugging_face(config: TransformerConfig, hf_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names for a Llama's weights.

    Args:
        config: From `config_from_hugging_face`.
        hf_state: Its weights.
    """
    ours_of = {theirs: ours for ours, theirs in _names(config).items()}
    ignored = {"lm_head.weight"} if config.tied_embeddings else set()
    return {
        ours_of.get(name, name): tensor
        for name, tensor in hf_state.items()
        if name not in ignored and not name.endswith("rotary_emb.inv_freq")
    }


def state_to_hugging_face(config: TransformerConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Llama's names for our weights.

    Args:
        config: One without `misfits`.
        state: Our weights.
    """
    names = _names(config)
    return {names[name]: tensor for name, tensor in state.items()}


def projection_name(layer: int, name: str) -> str:
    """Llama's name of a linear layer.

    Args:
        layer: Number of the block.
        name: Ours within the block, such as `attention.query`.
    """
    return f"model.layers.{layer}.{_BLOCK_NAMES[name]}"


def _names(config: TransformerConfig) -> dict[str, str]:
    """Llama's name of each of our parameters."""
    names = {"embedding.weight": "model.embed_tokens.weight", "final_norm.weight": "model.norm.weight"}
    if not config.tied_embeddings:
        names["head.weight"] = "lm_head.weight"
    for layer in range(config.num_layers):
        for ours, theirs in _BLOCK_NAMES.items():
            for kind in ("weight", "bias"):
                names[f"blocks.{layer}.{ours}.{kind}"] = f"model.layers.{layer}.{theirs}.{kind}"
    return names


def _positions_from(hf: dict[str, Any]) -> RotaryConfig:
    rope = {**(hf.get("rope_scaling") or {}), **(hf.get("rope_parameters") or {})}
    theta = float(rope.get("rope_theta", hf.get("rope_theta", 10000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    original = rope.get("original_max_position_embeddings", hf["max_position_embeddings"])
    if kind == "default":
        return RotaryConfig(theta)
    if kind == "linear":
        return RotaryConfig(theta, LinearScaling(float(rope["factor"])))
    if kind == "llama3":
        return RotaryConfig(
            theta,
            Llama3Scaling(
                float(rope["factor"]), original, float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
            ),
        )
    unusual = [name for name in ("mscale", "mscale_all_dim", "attention_factor") if rope.get(name) is not None]
    if kind != "yarn" or unusual or rope.get("truncate") is False:
        raise ValueError(
            f"rope_type={kind!r} {' '.join(unusual)}: must be default, linear, llama3, or yarn without mscale, "
            "attention_factor and truncate."
        )
    betas = (float(rope.get("beta_fast") or 32), float(rope.get("beta_slow") or 1))
    return RotaryConfig(theta, YarnScaling(float(rope["factor"]), original, *betas))


def _rope_to(config: TransformerConfig) -> tuple[float, dict[str, Any]]:
    """Base, and the scaling's keys."""
    assert isinstance(config.positions, RotaryConfig)
    theta, scaling = config.positions.theta, config.positions.scaling
    if scaling is None:
        return theta, {}
    if isinstance(scaling, NTKScaling):  # a larger base, and nothing else
        return ntk_theta(theta, scaling.factor, config.channels), {}
    if isinstance(scaling, LinearScaling):
        return theta, {"rope_type": "linear", "factor": scaling.factor}
    original = {"factor": scaling.factor, "original_max_position_embeddings": scaling.original_max_seq_len}
    if isinstance(scaling, Llama3Scaling):
        factors = {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
        return theta, {"rope_type": "llama3", **original, **factors}
    assert math.isfinite(scaling.beta_fast)
    return theta, {"rope_type": "yarn", **original, "beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
