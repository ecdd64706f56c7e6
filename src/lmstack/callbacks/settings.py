"""What of a run can be changed while it goes on, and how."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import lightning as L
from torch import nn

from lmstack.callbacks.optimizer_swap import can_swap_optimizer, optimizer_from, swap_optimizer
from lmstack.callbacks.rollback import restart_loader
from lmstack.models import Transformer
from lmstack.nn.feed_forward import ACTIVATIONS
from lmstack.nn.lora import LoRALinear
from lmstack.optim.parameter_groups import EMBEDDING_GROUP, HEAD_GROUP, HIDDEN_GROUP

OPTIMIZER = "model.optimizer"
"""The whole optimizer; what is typed is its `kind` and any of its fields, as keys below this one."""

WEIGHTS = "data.weights"
"""Of every source, as keys below this one."""


@dataclass(frozen=True)
class Number:
    """Which numbers a text may mean.

    Attributes:
        least: Smallest value, itself allowed or not as `is_open` says.
        is_open: Whether a value must be above `least`.
        below: Values must be smaller; infinity for no limit.
        may_be_null: Whether null means something.
    """

    least: float = 0.0
    is_open: bool = True
    below: float = math.inf
    may_be_null: bool = False

    def __call__(self, key: str, text: str) -> float | None:
        """The value that a text means.

        Args:
            key: Of the setting.
            text: As typed.

        Raises:
            ValueError: It is no number, or out of range.
        """
        if self.may_be_null and text == "null":
            return None
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"{key}={text}: expected a number{' or null' if self.may_be_null else ''}.") from None
        is_large_enough = value > self.least if self.is_open else value >= self.least
        if not (is_large_enough and value < self.below):
            limit = "" if self.below == math.inf else f" and below {self.below:g}"
            raise ValueError(f"{key}={text}: must be {'above' if self.is_open else 'at least'} {self.least:g}{limit}.")
        return value


@dataclass(frozen=True)
class Setting:
    """A value of the config that the next step can be taken with.

    Attributes:
        value: What holds.
        parse: The value that a text means, given the key; raises ValueError.
        write: Makes a new value hold, given the one that holds.
        is_restored: Whether a checkpoint brings it back by itself, with the optimizer's state or the model's config.
    """

    value: Any
    parse: Callable[[str, str], Any]
    write: Callable[[Any, Any], None]
    is_restored: bool = False


def settings_of(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Setting]:
    """The settings of a run by key; what is not there cannot be changed without starting it again.

    Args:
        trainer: The trainer.
        module: The stage.
    """
    stage: Any = module
    config = getattr(stage, "optimizer_config", None)
    if config is None:
        return {}
    settings: dict[str, Setting] = {}
    if hasattr(getattr(trainer, "datamodule", None), "add_phase"):
        settings[WEIGHTS] = _data_weights(trainer, stage)
    if can_swap_optimizer(trainer):
        settings[OPTIMIZER] = Setting(
            asdict(config), optimizer_from, lambda _, new: swap_optimizer(trainer, stage, new), is_restored=True
        )
    rates = {"model.optimizer.lr": "muon" if hasattr(config, "adamw_lr") else None}
    if hasattr(config, "adamw_lr"):
        rates["model.optimizer.adamw_lr"] = "adamw"
    for key, algorithm in rates.items():
        rate = getattr(config, key.rpartition(".")[2])
        settings[key] = Setting(rate, Number(), _rate_writer(trainer, algorithm), is_restored=True)
    decay = _decay_writer(trainer, config.decay_embeddings)
    settings["model.optimizer.weight_decay"] = Setting(
        config.weight_decay, Number(is_open=False), decay, is_restored=True
    )
    if module.automatic_optimization:
        clip = trainer.gradient_clip_val
        settings["trainer.gradient_clip_val"] = Setting(
            None if clip is None else float(clip), Number(may_be_null=True),
            lambda _, new: setattr(trainer, "gradient_clip_val", new),
        )  # fmt: skip
    elif hasattr(stage, "update"):

        def limit(_: Any, new: float) -> None:
            stage.update = replace(stage.update, max_grad_norm=new)

        settings["model.update.max_grad_norm"] = Setting(stage.update.max_grad_norm, Number(), limit)
    transformer: Transformer = stage.transformer
    if getattr(stage, "uses_dropout", False):
        settings["model.transformer.dropout"] = Setting(
            transformer.config.dropout, Number(is_open=False, below=1.0), _dropout_writer(transformer)
        )
    settings["model.transformer.feed_forward.activation"] = Setting(
        transformer.config.feed_forward.activation,
        _activation_from,
        lambda _, new: transformer.set_activation(new),
        is_restored=True,
    )
    return settings


def _data_weights(trainer: L.Trainer, stage: Any) -> Setting:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]

    def write(_: Any, new: dict[str, float]) -> None:
        loader: Any = trainer.train_dataloader
        data.add_phase(loader.skipped.place(loader.samples_seen), new)
        stage.after_step = stage.after_step or partial(restart_loader, trainer)

    return Setting(data.weights, _weights_from, write, is_restored=True)


def _weights_from(key: str, text: str) -> dict[str, float]:
    given = json.loads(text)
    if wrong := [name for name, weight in given.items() if not isinstance(weight, int | float)]:
        raise ValueError(f"{key}.{wrong[0]}={given[wrong[0]]}: expected a number.")
    return {name: float(weight) for name, weight in given.items()}


def _activation_from(key: str, text: str) -> str:
    if text not in ACTIVATIONS:
        raise ValueError(f"{key}={text}: must be one of {', '.join(ACTIVATIONS)}.")
    return text


def _rate_writer(trainer: L.Trainer, algorithm: str | None) -> Callable[[float, float], None]:
    def write(old: float, new: float) -> None:
        """Scale, and do not set: groups have factors of their own, and so may other callbacks."""
        for config in trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            for number, group in enumerate(scheduler.optimizer.param_groups):
                if algorithm is None or group["algorithm"] == algorithm:
                    scheduler.base_lrs[number] *= new / old
                    group["initial_lr"] *= new / old
                    group["lr"] *= new / old

    return write


def _decay_writer(trainer: L.Trainer, decay_embeddings: bool) -> Callable[[float, float], None]:
    decaying = {HIDDEN_GROUP, HEAD_GROUP, *([EMBEDDING_GROUP] if decay_embeddings else [])}

    def write(_: float, new: float) -> None:
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                if group["name"] in decaying:
                    group["weight_decay"] = new

    return write


def _dropout_writer(transformer: nn.Module) -> Callable[[float, float], None]:
    def write(_: float, new: float) -> None:
        for module in transformer.modules():
            if hasattr(module, "dropout") and not isinstance(module, LoRALinear):
                module.dropout = nn.Dropout(new).train(module.training) if new else nn.Identity()

    return write
