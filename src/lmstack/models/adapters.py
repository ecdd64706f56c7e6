"""Adapters in the layout of the PEFT library: `adapter_config.json` and `adapter_model.safetensors`."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lmstack.models.families import gpt2, llama
from lmstack.models.transformer import Transformer
from lmstack.nn.lora import LoRAConfig, LoRALinear

_PEFT = "base_model.model."
Adapter = dict[str, Tensor]
"""`lora_a`, `lora_b` and, for DoRA, `magnitude` of a layer."""


def export_peft(folder: str | Path, transformer: Transformer, config: LoRAConfig, *, base_model: str) -> None:
    """Write adapters as `peft.PeftModel.from_pretrained` reads them, for the base as `save_hugging_face` writes it.

    GPT-2 has one matrix for queries, keys and values: their adapters become one of three times the rank.

    Args:
        folder: Made when it does not exist.
        transformer: With adapters.
        config: Theirs.
        base_model: What `adapter_config.json` names as the base: a folder, or a name on a model hub.

    Raises:
        ValueError: There are no adapters, or no Hugging Face family has the transformer's layers.
    """
    adapters = {name: part for name, part in transformer.named_modules() if isinstance(part, LoRALinear)}
    if not adapters:
        raise ValueError("The transformer has no adapters. Put them on with add_lora, or export merged weights.")
    is_gpt2 = not gpt2.misfits(transformer.config)
    if not is_gpt2 and (misfits := llama.misfits(transformer.config)):
        raise ValueError(f"No Hugging Face family has these layers: llama needs {', '.join(misfits)}.")
    by_layer = {name: _tensors(part) for name, part in adapters.items()}
    tensors: dict[str, Tensor] = {}
    fused: dict[str, list[str]] = {}
    for name, adapter in by_layer.items():
        layer, ours = name.removeprefix("blocks.").split(".", 1)
        theirs = (gpt2 if is_gpt2 else llama).projection_name(int(layer), ours)
        if is_gpt2 and ours in gpt2.FUSED:
            fused.setdefault(theirs, []).append(name)
        else:
            tensors.update(_named(theirs, adapter))
    for theirs, names in fused.items():
        block = names[0].rsplit(".", 1)[0]
        tensors.update(_named(theirs, _fuse(transformer, block, by_layer)))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    values = _config(tensors, config, fused_names=sorted(fused), base_model=base_model, is_gpt2=is_gpt2)
    (folder / "adapter_config.json").write_text(json.dumps(values, indent=2) + "\n")


def _tensors(layer: LoRALinear) -> Adapter:
    parts = {"lora_a": layer.lora_a, "lora_b": layer.lora_b, "magnitude": layer.magnitude}
    return {name: tensor.detach() for name, tensor in parts.items() if tensor is not None}


def _named(theirs: str, adapter: Adapter) -> dict[str, Tensor]:
    names = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
    return {f"{_PEFT}{theirs}.{names[name]}": tensor.contiguous() for name, tensor in adapter.items()}


def _fuse(transformer: Transformer, block: str, by_layer: dict[str, Adapter]) -> Adapter:
    """One adapter of the fused matrix: A stacked, B block-diagonal; zeros where a part has none."""
    parts, magnitudes = [], []
    like = next(iter(by_layer.values()))
    rank = like["lora_a"].shape[0]
    for name in ("query", "key", "value"):
        linear = transformer.get_submodule(f"{block}.{name}")
        assert isinstance(linear.weight, Tensor)
        empty = {
            "lora_a": linear.weight.new_zeros(rank, linear.weight.shape[1]),
            "lora_b": linear.weight.new_zeros(linear.weight.shape[0], rank),
            "magnitude": torch.linalg.vector_norm(linear.weight.detach(), dim=1),
        }
        part = {**empty, **by_layer.get(f"{block}.{name}", {})}
        parts.append(part)
        magnitudes.append(part["magnitude"])
    fused = {
        "lora_a": torch.cat([part["lora_a"] for part in parts]),
        "lora_b": torch.block_diag(*(part["lora_b"] for part in parts)),  # type: ignore[no-untyped-call]
    }
    return fused | ({"magnitude": torch.cat(magnitudes)} if "magnitude" in like else {})


def _config(
    tensors: dict[str, Tensor], config: LoRAConfig, *, fused_names: list[str], base_model: str, is_gpt2: bool
) -> dict[str, Any]:
    modules = {name.removeprefix(_PEFT).split(".lora_")[0] for name in tensors}
    # The factor on B A must stay what it was at three times the rank.
    alpha = config.alpha * (math.sqrt(3) if config.kind == "rslora" else 3)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.kind == "rslora",
        "use_dora": config.kind == "dora",
        "bias": "none",
        "fan_in_fan_out": is_gpt2,
        "inference_mode": True,
        "target_modules": sorted(modules),
        "rank_pattern": dict.fromkeys(fused_names, 3 * config.rank),
        "alpha_pattern": dict.fromkeys(fused_names, alpha),
    }
