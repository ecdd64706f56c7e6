"""Adapters in PEFT's layout compute what ours do, on the Hugging Face matrices."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lmstack.models import Transformer, save_hugging_face
from lmstack.models.adapters import export_peft
from lmstack.models.config import AttentionConfig, DenseConfig, LearnedConfig, NormConfig
from lmstack.models.families import to_hugging_face
from lmstack.nn.lora import LoRAConfig, LoRALinear, add_lora, merged_state
from tiny_transformer import tokens, transformer

GPT2 = {
    "positions": LearnedConfig(),
    "num_kv_heads": None,
    "norm": NormConfig(kind="layer", bias=True),
    "attention": AttentionConfig(qkv_bias=True, out_bias=True),
    "feed_forward": DenseConfig(48, activation="gelu_tanh", gated=False, bias=True),
}
FAMILIES: dict[str, dict[str, Any]] = {"llama": {}, "gpt2": GPT2}
TARGETS = (None, ("attention.query", "attention.value", "feed_forward.down"))


def adapted(family: str, config: LoRAConfig) -> Transformer:
    model = transformer(**FAMILIES[family])
    add_lora(model, config)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, LoRALinear):
                part.lora_b.normal_(0, 0.2)
                if part.magnitude is not None:
                    part.magnitude.mul_(1.1)
    return model


def merged_by_peft_s_formula(folder: Path, base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """W + scaling B A, then DoRA's norm: from the files alone, as PEFT's documentation says."""
    values = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    merged = dict(base)
    for name in values["target_modules"]:
        a, b = (tensors[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
        rank = values["rank_pattern"].get(name, values["r"])
        assert a.shape[0] == rank
        alpha = values["alpha_pattern"].get(name, values["lora_alpha"])
        scaling = alpha / (math.sqrt(rank) if values["use_rslora"] else rank)
        update = scaling * b @ a
        weight = base[f"{name}.weight"]
        weight = weight.T if values["fan_in_fan_out"] else weight
        weight = weight + update
        if values["use_dora"]:
            magnitude = tensors[f"base_model.model.{name}.lora_magnitude_vector"]
            weight = magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True)
        merged[f"{name}.weight"] = weight.T if values["fan_in_fan_out"] else weight
    return merged


@pytest.mark.parametrize("targets", TARGETS, ids=["all", "some"])
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_files_hold_the_same_update(tmp_path: Path, family: str, kind: Any, targets: Any) -> None:
    config = LoRAConfig(rank=2, alpha=3.0, kind=kind, targets=targets)
    model = adapted(family, config)
    plain = {name: tensor for name, tensor in model.state_dict().items() if "lora" not in name and "magn" not in name}
    export_peft(tmp_path, model, config, base_model="base")
    expected = to_hugging_face(model.config, merged_state(model.state_dict(), config))[1]
    merged = merged_by_peft_s_formula(tmp_path, to_hugging_face(model.config, plain)[1])
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_computes_the_same_logits(tmp_path: Path, family: str, kind: Any) -> None:
    peft = pytest.importorskip("peft", reason="the PEFT library is not installed")
    from transformers import AutoModelForCausalLM

    config = LoRAConfig(rank=2, alpha=3.0, kind=kind)
    model = adapted(family, config)
    plain = {name: tensor for name, tensor in model.state_dict().items() if "lora" not in name and "magn" not in name}
    save_hugging_face(tmp_path / "base", (plain, model.config))
    export_peft(tmp_path / "adapter", model, config, base_model=str(tmp_path / "base"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    ids = tokens(2, 9)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model.logits(model(ids)), rtol=0, atol=1e-4)


def test_a_model_without_adapters_or_family_is_refused(tmp_path: Path) -> None:
    config = LoRAConfig(rank=2, alpha=2.0)
    with pytest.raises(ValueError, match="no adapters"):
        export_peft(tmp_path, transformer(), config, base_model="base")
    odd = transformer(attention=AttentionConfig(qk_norm=True))
    add_lora(odd, config)
    with pytest.raises(ValueError, match="no qk_norm"):
        export_peft(tmp_path, odd, config, base_model="base")
