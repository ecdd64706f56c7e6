"""Which classes a config's `stage` stands for. Bound before parsing, so that keys need no class_path."""

import difflib
import importlib
from dataclasses import dataclass
from typing import Any

from lmstack.cli.failures import ConfigError

STAGES = {
    "causal_lm": ("lmstack.stages.causal_lm.CausalLM", "lmstack.data.modules.pretraining.PretrainingData"),
    "sft": ("lmstack.stages.sft.SFT", "lmstack.data.modules.conversation.ConversationData"),
    "reward_model": ("lmstack.stages.reward_model.RewardModel", "lmstack.data.modules.preference.PreferenceData"),
    "dpo": ("lmstack.stages.dpo.DPO", "lmstack.data.modules.preference.PreferenceData"),
    "ppo": ("lmstack.stages.ppo.PPO", "lmstack.data.modules.prompts.PromptData"),
    "grpo": ("lmstack.stages.grpo.GRPO", "lmstack.data.modules.prompts.PromptData"),
}


@dataclass(frozen=True)
class Stage:
    """A training objective and the data it takes.

    Attributes:
        model: The LightningModule class.
        data: The LightningDataModule class.
    """

    model: type
    data: type


def stage_paths(stage: Any) -> tuple[str, str]:
    """Import paths of the model and data classes.

    Args:
        stage: A name in `STAGES`, or `{model: package.Class, data: package.Class}` for classes of your own.

    Raises:
        ConfigError: There is no such stage.
    """
    if isinstance(stage, dict) and set(stage) == {"model", "data"}:
        return str(stage["model"]), str(stage["data"])
    if isinstance(stage, str) and stage in STAGES:
        return STAGES[stage]
    near = difflib.get_close_matches(str(stage), STAGES, 1)
    raise ConfigError(
        f"stage: no such stage {stage!r}. " + (f"Did you mean {near[0]}? " if near else "") + f"Stages: "
        f"{', '.join(STAGES)}; or give classes of your own, {{model: package.Class, data: package.Class}}."
    )


def load_stage(stage: Any) -> Stage:
    """Import the classes of a stage.

    Args:
        stage: As in `stage_paths`.

    Raises:
        ConfigError: There is no such stage or class.
    """
    model, data = stage_paths(stage)
    return Stage(load_class(model, "stage"), load_class(data, "stage"))


def load_class(path: str, key: str) -> type:
    """Import a class.

    Args:
        path: `package.module.Class`.
        key: The config key that names it, for the message.

    Raises:
        ConfigError: There is no such module or class.
    """
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (ModuleNotFoundError, ValueError) as error:
        if getattr(error, "name", None) and not module_name.startswith(str(getattr(error, "name", None))):
            raise ConfigError(f"{key}: {path} needs the package {getattr(error, 'name', '')!r}: {error}") from error
        raise ConfigError(f"{key}: cannot import {path!r}: expected package.module.Class") from error
    found = getattr(module, name, None)
    if not isinstance(found, type):
        near = difflib.get_close_matches(name, [n for n in vars(module) if not n.startswith("_")], 1)
        hint = f" Did you mean {module_name}.{near[0]}?" if near else ""
        raise ConfigError(f"{key}: no class {name!r} in {module_name}.{hint}")
    return found
