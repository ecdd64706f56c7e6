"""`strategy=auto`: the strategy that the plan recommends, put into the config before anything is built."""

import os
import sys
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from lmstack.cli.compose import packaged_conf
from lmstack.cli.failures import ConfigError

RECOMMENDED = "recommended"
"""Value of `trainer.strategy` that is replaced."""
WHOLE_MODEL_STAGES = ("ppo", "grpo", "reward_model", "dpo")
_CUT_LAYERS = ("tp", "tp_fsdp2", "pipeline", "ptdp")
_DEEPSPEED = ("deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3")
_ON_A_MESH = ("fsdp2", "fsdp2 + replicas", *_CUT_LAYERS)


def resolve_strategy(config: dict[str, Any], checkpoint: Path | None) -> None:
    """Replace `trainer.strategy=recommended`; a run that goes on keeps what it has, while the devices are as many.

    Args:
        config: The composed config, changed in place.
        checkpoint: Where the run goes on from; None for a new one.

    Raises:
        ConfigError: Nothing fits, or the config cannot be planned.
    """
    trainer = config.get("trainer") or {}
    if trainer.get("strategy") != RECOMMENDED:
        if config.get("cluster"):
            raise ConfigError(f"cluster={config['cluster']}: it is for strategy=auto, and for `lmstack plan`.")
        return
    kept = None if checkpoint is None else _of_earlier_start(config)
    keys, decision = (kept, "as the run began") if kept is not None else _decide(config)
    config["trainer"] = trainer | keys
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"strategy=auto: {decision}", file=sys.stderr)


def choose(config: dict[str, Any]) -> Any:
    """Every strategy for a config, on its cluster or the devices here.

    Args:
        config: The composed config.

    Raises:
        ConfigError: The config or the cluster is wrong.
    """
    from lmstack.cli.plan import checked_data, precision_name, transformer_of
    from lmstack.models.activation_checkpointing import read_choice
    from lmstack.planning.strategies import choose_strategy
    from lmstack.planning.workload import Workload, precision_of

    planned = config | {"trainer": {k: v for k, v in config["trainer"].items() if k != "strategy"}}
    data, model = checked_data(planned), config["model"]
    try:
        workload = Workload(
            transformer=transformer_of(config),
            sequence_length=data.sequence_length,
            micro_batch_size=data.micro_batch_size,
            global_batch_size=data.global_batch_size,
            precision=precision_of(precision_name(config["trainer"]), bool(model["optimizer"].get("master_weights"))),
            optimizer=model["optimizer"]["kind"],
            activation_checkpointing=read_choice(model.get("activation_checkpointing")),
            loss_chunk_size=int(model.get("loss_chunk_size") or 4096),
        )
        return choose_strategy(workload, _cluster(config), refusals=_refusals(config))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _cluster(config: dict[str, Any]) -> Any:
    from lmstack.planning.cluster import parse_cluster
    from lmstack.planning.local_cluster import local_cluster

    if given := config.get("cluster"):
        return parse_cluster(str(given))
    trainer = config["trainer"]
    return local_cluster(
        str(trainer.get("accelerator") or "auto"), trainer.get("devices"), int(trainer.get("num_nodes") or 1)
    )


def _refusals(config: dict[str, Any]) -> dict[str, str]:
    """What strategies refuse of a stage, an optimizer or a precision."""
    from lmstack.cli.plan import precision_name, uses_float8

    stage, model = config["stage"], config["model"]
    found: dict[str, str] = {}
    if stage in WHOLE_MODEL_STAGES or model.get("lora"):
        what = "adapters fit" if model.get("lora") else f"stage {stage} fits"
        found = dict.fromkeys((*_ON_A_MESH, *_DEEPSPEED), f"{what} on devices that hold the whole model")
    if str(config["trainer"].get("precision")).startswith("16"):
        found |= dict.fromkeys(_ON_A_MESH, "float16 is for devices that hold the whole model")
    if model["optimizer"]["kind"] != "adamw" or precision_name(config["trainer"]) not in ("32-true", "bf16-mixed"):
        found |= dict.fromkeys(_DEEPSPEED, "it takes AdamW in 32-true or bf16-mixed")
    if uses_float8(config["trainer"]):
        found |= dict.fromkeys((*_CUT_LAYERS, *_DEEPSPEED), "float8 is for layers that are whole")
    if model["optimizer"].get("master_weights"):
        found["local_sgd"] = "the outer optimizer does not know of master weights"
    return found


def _decide(config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Keys of `trainer`, and what was decided and why."""
    from lmstack.planning.strategy_table import preset, said, settings
    from lmstack.planning.table import size

    cluster = _cluster(config)
    if config["stage"] in WHOLE_MODEL_STAGES or not isinstance(config["stage"], str):
        name = "ddp" if cluster.num_devices > 1 else "single"
        why = f"stage {config['stage']} has the whole model on every device; memory is not planned"
        return _keys(name, {}, cluster), f"strategy={name}: {why}"
    choice = choose(config)
    if choice.recommended is None:
        raise ConfigError(f"strategy=auto on {cluster.text}: {choice.reason}.")
    plan = choice.recommended
    name = preset(plan)
    why = f"{choice.reason}; about {size(plan.memory.total)} a device"
    return _keys(name, settings(plan), cluster), f"{said(plan)} on {cluster.text}: {why}"


def _keys(name: str, sizes: dict[str, int | bool], cluster: Any) -> dict[str, Any]:
    strategy = yaml.safe_load((packaged_conf() / "strategy" / f"{name}.yaml").read_text())["strategy"]
    for key, value in sizes.items():
        strategy[key.removeprefix("strategy.")] = value
    devices = 1 if name == "single" else cluster.devices_per_node
    return {"strategy": strategy, "devices": devices, "num_nodes": 1 if name == "single" else cluster.num_nodes}


def _of_earlier_start(config: dict[str, Any]) -> dict[str, Any] | None:
    """What the run's own config has, if it is for as many devices."""
    from lmstack.cli.saved_config import NAME

    path = Path(config["trainer"]["default_root_dir"]) / NAME
    if not path.is_file():
        return None
    saved = yaml.safe_load(path.read_text())["trainer"]
    devices = int(saved.get("devices", 1)) * int(saved.get("num_nodes", 1))
    is_single = saved.get("strategy") == "auto"  # Lightning's word for it; it leaves other devices alone
    if devices != _cluster(config).num_devices and not is_single:
        return None
    return {key: saved[key] for key in ("strategy", "devices", "num_nodes") if key in saved}
