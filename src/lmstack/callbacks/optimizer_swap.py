"""Another optimizer for a run that goes on."""

import dataclasses
import json
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lmstack.optim.optimizers import AdamWConfig, MuonConfig

KINDS: dict[str, type[AdamWConfig] | type[MuonConfig]] = {"adamw": AdamWConfig, "muon": MuonConfig}
_OF_GROUPS = ("betas", "eps", "momentum")
_OF_SETTINGS = ("lr", "adamw_lr", "weight_decay")  # which have a key of their own


def optimizer_from(key: str, text: str) -> dict[str, Any]:
    """The fields of an optimizer config, defaults included.

    Args:
        key: For messages.
        text: The fields that are given, `kind` among them, as JSON.

    Raises:
        ValueError: The kind is unknown, a field is not one of its own, is missing, or is out of range.
    """
    given = json.loads(text)
    kind = str(given.get("kind"))
    if kind not in KINDS:
        raise ValueError(f"{key}.kind={kind}: must be one of {', '.join(KINDS)}.")
    fields = {field.name: field for field in dataclasses.fields(KINDS[kind])}
    if unknown := [name for name in given if name not in fields]:
        raise ValueError(f"{key}.{unknown[0]} is no field of {kind}. These are: {', '.join(fields)}.")
    if missing := [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in given]:
        raise ValueError(f"{key}.{missing[0]} is not given, and {kind} has no default for it.")
    try:
        return dataclasses.asdict(config_of(given))
    except TypeError as error:
        raise ValueError(f"{key}: {error}") from None


def config_of(fields: dict[str, Any]) -> AdamWConfig | MuonConfig:
    """The config that has these fields.

    Args:
        fields: As `optimizer_from` gives them.
    """
    as_tuples: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in fields.items()}
    return KINDS[fields["kind"]](**as_tuples)


def can_swap_optimizer(trainer: L.Trainer) -> bool:
    """Whether the strategy leaves the optimizer's state to the optimizer.

    Args:
        trainer: Whose strategy.
    """
    return type(trainer.strategy) in (SingleDeviceStrategy, DDPStrategy)


def swap_optimizer(trainer: L.Trainer, stage: Any, fields: dict[str, Any]) -> None:
    """Go on with another optimizer, whose state is empty; the schedule stays where it is.

    Args:
        trainer: At the end of a step.
        stage: Whose parameters are trained.
        fields: Of the new optimizer's config.
    """
    before = [config.scheduler for config in trainer.lr_scheduler_configs]
    stage.optimizer_config = config_of(fields)
    trainer.strategy.setup_optimizers(trainer)
    for config, old in zip(trainer.lr_scheduler_configs, before, strict=True):
        scheduler: Any = config.scheduler
        scheduler.last_epoch, scheduler._step_count = old.last_epoch, old._step_count
        for group, rate in zip(scheduler.optimizer.param_groups, scheduler.get_lr(), strict=True):
            group["lr"] = rate
        scheduler._last_lr = scheduler.get_lr()


def rewrite_fields(trainer: L.Trainer, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Go on with the same optimizer and other numbers, where a checkpoint's numbers hold.

    Args:
        trainer: Whose optimizer has its state.
        before: Fields that the config had when the checkpoint was written.
        now: Fields that it has now, of the same kind.

    Raises:
        ValueError: A field differs that decides what the state is.
    """
    for name in [name for name in now if now[name] != before.get(name) and name not in _OF_SETTINGS]:
        if name not in _OF_GROUPS:
            raise ValueError(
                f"model.optimizer.{name}={now[name]}, but the checkpoint was trained with {before.get(name)}. Resume "
                "with that value, or start a new run from its weights with model.init_from."
            )
        for group in trainer.optimizers[0].param_groups:
            if name in group:
                group[name] = now[name]
