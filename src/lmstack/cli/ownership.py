"""Keys with two owners: each quantity is set in one place, and the other place is refused by name."""

from collections.abc import Collection
from typing import Any

from lmstack.cli.failures import ConfigError

OWNED_ELSEWHERE = {
    "accumulate_grad_batches": (
        "one batch of the loader is one optimizer step. Set data.global_batch_size and data.micro_batch_size; their "
        "ratio is the accumulation"
    ),
    "max_epochs": "a run's length belongs to trainer.max_steps (optimizer steps) or data.max_tokens. Set one of those",
    "min_epochs": "a run's length belongs to trainer.max_steps (optimizer steps) or data.max_tokens. Set one of those",
    "check_val_every_n_epoch": "validation belongs to trainer.val_check_interval (optimizer steps). Set that",
    "callbacks": "callbacks belong to the mapping `callbacks`: +callbacks.<name>.class_path=..., ~callbacks.<name>",
    "logger": "loggers belong to the mapping `logger`: +logger.<name>.class_path=..., ~logger.<name>, or logger=none",
    "weights_only": "it belongs to `ckpt_path`",
}


LENGTHS = ("max_tokens", "num_epochs", "num_episodes")
"""Keys of `data` that say how long a run is; a data module has one of them."""


def prefer_typed_length(config: dict[str, Any], typed: Collection[str]) -> None:
    """Let a run length that was typed win over the other one, when that stands in a file. Null steps become -1.

    Args:
        config: The composed config, changed in place.
        typed: Keys of the overrides.
    """
    is_data_typed = any(f"data.{name}" in typed for name in LENGTHS)
    if "trainer.max_steps" in typed and not is_data_typed and given_max_steps(config) is not None:
        data = config.get("data") or {}
        config["data"] = data | {name: None for name in LENGTHS if name in data}
    if is_data_typed and "trainer.max_steps" not in typed and given_data_length(config) is not None:
        config["trainer"] = (config.get("trainer") or {}) | {"max_steps": -1}
    trainer = config.get("trainer")
    if isinstance(trainer, dict) and trainer.get("max_steps", -1) is None:
        trainer["max_steps"] = -1


def refuse_two_owners(config: dict[str, Any]) -> None:
    """Refuse a quantity that is set in a place which does not own it.

    Args:
        config: The composed config.

    Raises:
        ConfigError: Naming both places.
    """
    for key in ("model", "data", "trainer", "callbacks", "logger", "vars"):
        if not isinstance(config.get(key, {}), dict | None):
            raise ConfigError(f"{key}: expected a mapping or a file of conf/{key}, got {config[key]!r}")
    trainer = config.get("trainer") or {}
    for key, owner in OWNED_ELSEWHERE.items():
        if trainer.get(key) is not None:
            raise ConfigError(f"trainer.{key}={trainer[key]!r}: {owner}, and drop trainer.{key}.")
    if given_max_steps(config) is not None and (length := given_data_length(config)) is not None:
        raise ConfigError(
            f"trainer.max_steps={given_max_steps(config)} and data.{length}={config['data'][length]} both set the "
            "length of the run. Keep one and set the other to null."
        )


def refuse_no_length(config: dict[str, Any]) -> None:
    """Refuse a training run without an end.

    Args:
        config: The composed config.

    Raises:
        ConfigError: No length is given.
    """
    if given_max_steps(config) is None and given_data_length(config) is None:
        data = config.get("data") or {}
        meanings = {"num_epochs": "times through the data", "num_episodes": "responses"}
        name = next((name for name in meanings if name in data), "max_tokens")
        raise ConfigError(
            f"the run has no end: set trainer.max_steps (optimizer steps) or data.{name} "
            f"({meanings.get(name, 'training tokens')})."
        )


def given_max_steps(config: dict[str, Any]) -> Any:
    """`trainer.max_steps`, None where it is not set; Lightning's -1 means not set."""
    steps = (config.get("trainer") or {}).get("max_steps")
    return None if steps == -1 else steps


def given_data_length(config: dict[str, Any]) -> str | None:
    """Which key of `data` sets the length of the run; None where none does."""
    data = config.get("data") or {}
    return next((name for name in LENGTHS if data.get(name) is not None), None)
