"""GPT-2's layout: learned positions, layer norms with bias, one fused and transposed projection for q, k and v."""

from typing import Any

import torch
from torch import Tensor

from lmstack.models.config import (
    AttentionConfig,
    DenseConfig,
    DepthScaledInit,
    LearnedConfig,
    NormConfig,
    TransformerConfig,
)

_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
}
_OUTER_NAMES = {
    "embedding.weight": "wte.weight",
    "position_embedding.weight": "wpe.weight",
    "final_norm.weight": "ln_f.weight",
    "final_norm.bias": "ln_f.bias",
    "head.weight": "lm_head.weight",
}
_NORMS = {"attention_norm": "ln_1", "feed_forward_norm": "ln_2"}
_PROJECTIONS = {"attention.output": "attn.c_proj", "feed_forward.up": "mlp.c_fc", "feed_forward.down": "mlp.c_proj"}
FUSED = ("attention.query", "attention.key", "attention.value")
"""What one matrix of GPT-2 makes, in this order."""


def config_from_hugging_face(hf: dict[str, Any]) -> TransformerConfig:
    """Our config of a `GPT2Config`. Dropout, a matter of training, is not taken over.

    Args:
        hf: Its `config.json`.

    Raises:
        ValueError: An option is not known here.
    """
    activation = hf.get("activation_function", "gelu_new")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation_function={activation!r}: must be one of {', '.join(_ACTIVATIONS)}.")
    usual = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
    for name, value in usual.items():
        if hf.get(name, value) != value:
            raise ValueError(f"{name}={hf[name]}: only {value} is supported.")
    return TransformerConfig(
        vocab_size=hf["vocab_size"],
        max_seq_len=hf["n_positions"],
        dim=hf["n_embd"],
        num_layers=hf["n_layer"],
        num_heads=hf["n_head"],
        positions=LearnedConfig(),
        feed_forward=DenseConfig(
            hf.get("n_inner") or 4 * hf["n_embd"],
            activation=_ACTIVATIONS[activation],  # type: ignore[arg-type]
            gated=False,
            bias=True,
        ),
        initialization=DepthScaledInit(hf.get("initializer_range", 0.02)),
        attention=AttentionConfig(qkv_bias=True, out_bias=True),
        norm=NormConfig(kind="layer", eps=hf.get("layer_norm_epsilon", 1e-5), bias=True),
        tied_embeddings=hf.get("tie_word_embeddings", True),
    )


def misfits(config: TransformerConfig) -> list[str]:
    """What keeps a config from being a GPT-2; empty when it is one.

    Biases that we lack are written as zeros.

    Args:
        config: Our config.
    """
    checks = {
        "positions=learned": config.positions.kind == "learned",
        "norm.kind=layer": config.norm.kind == "layer",
        "norm.placement=pre": config.norm.placement == "pre",
        "feed_forward.gated=False": not config.feed_forward.gated,
        "an activation other than relu2": config.feed_forward.activation != "relu2",
        "num_kv_heads=num_heads": config.kv_heads == config.num_heads,
        "head_dim=dim/num_heads": config.channels * config.num_heads == config.dim,
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
    """The `config.json` of a GPT-2 with our shape.

    Args:
        config: One without `misfits`.
    """
    names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.max_seq_len,
        "n_embd": config.dim,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.feed_forward.hidden_dim,
        "activation_function": names[config.feed_forward.activation],
        "layer_norm_epsilon": config.norm.eps,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "attn_pdrop": 0.0,
        "initializer_range": getattr(config.initialization, "std", 0.02),
        "tie_word_embeddings": config.tied_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def state_from_hugging_face(config: TransformerConfig, hf_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names and layout for a GPT-2's weights.

    Args:
        config: From `config_from_hugging_face`.
        hf_state: Its weights, with or without the `transformer.` prefix.
    """
    theirs = {name.removeprefix("transformer."): tensor for name, tensor in hf_state.items()}
    state = {ours: theirs[name] for ours, name in _outer_names(config).items()}
    for layer in range(config.num_layers):
        for kind in ("weight", "bias"):
            block = f"blocks.{layer}."
            fused = theirs[f"h.{layer}.attn.c_attn.{kind}"].chunk(3, dim=-1)
            state.update({f"{block}{name}.{kind}": _turned(part) for name, part in zip(FUSED, fused, strict=True)})
            for ours, name in _PROJECTIONS.items():
                state[f"{block}{ours}.{kind}"] = _turned(theirs[f"h.{layer}.{name}.{kind}"])
            for ours, name in _NORMS.items():
                state[f"{block}{ours}.{kind}"] = theirs[f"h.{layer}.{name}.{kind}"]
    return state


def state_to_hugging_face(config: TransformerConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """GPT-2's names and layout for our weights.

    Args:
        config: One without `misfits`.
        state: Our weights.
    """
    template = state["embedding.weight"]

    def bias(name: str, like: str) -> Tensor:
        return state.get(f"{name}.bias", template.new_zeros(state[f"{like}.weight"].shape[0]))

    theirs = {}
    for ours, name in _outer_names(config).items():
        prefix = "" if name.startswith("lm_head") else "transformer."
        theirs[prefix + name] = bias("final_norm", "final_norm") if ours == "final_norm.bias" else state[ours]
    for layer in range(config.num_layers):
        block, target = f"blocks.{layer}.", f"transformer.h.{layer}."
        fused = [block + name for name in FUSED]
        theirs[f"{target}attn.c_attn.weight"] = torch.cat([state[f"{name}.weight"] for name in fused]).T
        theirs[f"{target}attn.c_attn.bias"] = torch.cat([bias(name, name) for name in fused])
        for ours, name in _PROJECTIONS.items():
            theirs[f"{target}{name}.weight"] = state[f"{block}{ours}.weight"].T
            theirs[f"{target}{name}.bias"] = bias(block + ours, block + ours)
        for ours, name in _NORMS.items():
            theirs[f"{target}{name}.weight"] = state[f"{block}{ours}.weight"]
            theirs[f"{target}{name}.bias"] = bias(block + ours, block + ours)
    return theirs


def projection_name(layer: int, name: str) -> str:
    """GPT-2's name of a linear layer; queries, keys and values share one.

    Args:
        layer: Number of the block.
        name: Ours within the block, such as `attention.query`.
    """
    return f"transformer.h.{layer}.{'attn.c_attn' if name in FUSED else _PROJECTIONS[name]}"


def _turned(tensor: Tensor) -> Tensor:
    """A GPT-2 projection, (inputs, outputs), as ours, (outputs, inputs); a bias as it is."""
    return tensor.T.contiguous() if tensor.ndim == 2 else tensor


def _outer_names(config: TransformerConfig) -> dict[str, str]:
    return {
        ours: theirs for ours, theirs in _OUTER_NAMES.items() if not (config.tied_embeddings and ours == "head.weight")
    }
