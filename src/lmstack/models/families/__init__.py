"""Hugging Face layouts, both ways, on plain dictionaries: `transformers` is not needed."""

from typing import Any

from torch import Tensor

from lmstack.models.config import TransformerConfig
from lmstack.models.families import gpt2, llama

FAMILIES = {"gpt2": gpt2, "llama": llama}
"""The modules that convert a `model_type`."""


def from_hugging_face(
    hf_config: dict[str, Any], hf_state: dict[str, Tensor]
) -> tuple[TransformerConfig, dict[str, Tensor]]:
    """Our config and state from a Hugging Face model's.

    Args:
        hf_config: Its `config.json`.
        hf_state: Its weights.

    Raises:
        ValueError: The family or one of its options is not known here.
    """
    config = config_from_hugging_face(hf_config)
    return config, FAMILIES[hf_config["model_type"]].state_from_hugging_face(config, hf_state)


def config_from_hugging_face(hf_config: dict[str, Any]) -> TransformerConfig:
    """Our config from a Hugging Face model's.

    Args:
        hf_config: Its `config.json`.

    Raises:
        ValueError: The family or one of its options is not known here.
    """
    family = FAMILIES.get(hf_config.get("model_type", ""))
    if family is None:
        raise ValueError(f"model_type={hf_config.get('model_type')!r}: must be one of {', '.join(FAMILIES)}.")
    config: TransformerConfig = family.config_from_hugging_face(hf_config)
    return config


def to_hugging_face(config: TransformerConfig, state: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A Hugging Face config and state that compute the same function.

    Args:
        config: Our config.
        state: Our weights.

    Raises:
        ValueError: No family fits; the message says for each what does not.
    """
    reasons = []
    for name, family in FAMILIES.items():
        misfits = family.misfits(config)
        if not misfits:
            return family.config_to_hugging_face(config), family.state_to_hugging_face(config, state)
        reasons.append(f"{name} needs {', '.join(misfits)}")
    raise ValueError(f"No Hugging Face family computes this transformer: {'; '.join(reasons)}.")
