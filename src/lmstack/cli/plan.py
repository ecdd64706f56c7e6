"""`lmstack plan`: what a config will cost, before anything is built or downloaded."""

from typing import Any

from lmstack.cli.args import Arguments, parse_arguments
from lmstack.cli.failures import ConfigError

HELP = """\
usage: lmstack plan --config conf/<name>.yaml [key=value ...] [--flops-per-second 4e14] [--devices 8]
       lmstack plan --config conf/<name>.yaml [key=value ...] cluster=8xh100 | 2x8xa100_80gb | 4xcpu | <file>.yaml

Prints parameters, tokens, FLOPs, memory and time of a run. The speed is measured here, on a slice of the model, unless
it is given: floating-point operations a second that one device reaches in training (not its peak).

With a cluster, prints for every strategy whether it fits, what it sends and how long a step takes, and which to take.
"""


def main(argv: list[str]) -> int:
    """Print a plan.

    Args:
        argv: What follows `lmstack plan`.

    Returns:
        The exit status.
    """
    arguments = parse_arguments(argv)
    if arguments.wants_help:
        print(HELP, end="")
        return 0
    given_speed = _taken(arguments, "flops-per-second")
    devices = _taken(arguments, "devices")
    from lmstack.cli.compose import compose
    from lmstack.cli.lean_imports import import_lightning

    config = compose(arguments).values
    import_lightning(config)
    from rich.console import Console

    if config.get("cluster"):
        if given_speed is not None or devices is not None:
            raise ConfigError("--flops-per-second and --devices: the cluster says both. Leave them out.")
        from lmstack.cli.strategy_choice import choose
        from lmstack.planning.strategy_table import describe_choice

        console = Console(highlight=False)
        console.print(describe_choice(choose(config), width=console.width))
        return 0
    from lmstack.planning import Speed, describe_run

    speed = None if given_speed is None else Speed(given_speed, "given")
    plan = config_plan(config, world_size=None if devices is None else int(devices), speed=speed)
    Console(highlight=False).print(describe_run(plan, arguments.config or ""))
    return 0


def config_plan(config: dict[str, Any], *, world_size: int | None, speed: Any) -> Any:
    """The plan of a composed config.

    Args:
        config: The composed config.
        world_size: Devices; None takes them from the config.
        speed: A `Speed`; None measures it here.

    Raises:
        ConfigError: The config is wrong, or is of a stage that trains no transformer.
    """
    from lmstack.cli.ownership import given_max_steps, refuse_no_length
    from lmstack.models.activation_checkpointing import read_choice
    from lmstack.planning import measure_speed, plan_run

    refuse_no_length(config)
    data, transformer = checked_data(config), transformer_of(config)
    trainer = config["trainer"]
    steps = given_max_steps(config) or data.steps_for_tokens(data.max_tokens)
    precision = precision_name(trainer)
    shape = {"micro_batch_size": data.micro_batch_size, "sequence_length": data.sequence_length, "precision": precision}
    return plan_run(
        transformer,
        num_steps=steps,
        num_tokens=data.tokens_at_step(steps),
        global_batch_size=data.global_batch_size,
        world_size=world_size or _devices(trainer),
        data_parallel=_data_parallel(trainer, world_size or _devices(trainer)),
        master_weights=bool(config["model"]["optimizer"].get("master_weights")),
        optimizer=config["model"]["optimizer"]["kind"],
        activation_checkpointing=read_choice(config["model"].get("activation_checkpointing")),
        speed=speed or measure_speed(transformer, **shape),
        **shape,
    )


def checked_data(config: dict[str, Any]) -> Any:
    """The data module of a config that has no mistakes, for the sizes in it; nothing is read.

    Args:
        config: The composed config.

    Raises:
        ConfigError: The config is wrong, or its rows are not all of one length.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    from lmstack.cli.explain import condensed, mistakes
    from lmstack.cli.stage_table import load_stage

    if wrong := mistakes(config):
        raise ConfigError("\n".join(wrong))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(load_stage(config["stage"]).data, "data")
    try:
        data = parser.instantiate(parser.parse_object({"data": config["data"]})).data
    except ArgumentError as error:
        raise ConfigError(condensed(str(error))) from error
    if not hasattr(data, "sequence_length"):
        raise ConfigError(f"plan: rows of stage {config['stage']} are not all of one length: their cost is not known.")
    return data


def transformer_of(config: dict[str, Any]) -> Any:
    """The shape of the model, given or of the weights that it starts from.

    Args:
        config: The composed config.
    """
    from lmstack.models.checkpoint import read_config
    from lmstack.models.config import TransformerConfig

    given = config["model"].get("transformer")
    return TransformerConfig.from_dict(given) if given else read_config(config["model"]["init_from"])


def precision_name(trainer: dict[str, Any]) -> str:
    """The precision as Lightning names it; float8 holds what bf16-mixed does.

    Args:
        trainer: That part of the composed config.
    """
    return "bf16-mixed" if uses_float8(trainer) else str(trainer.get("precision") or "32-true")


def uses_float8(trainer: dict[str, Any]) -> bool:
    """Whether matrix products are in float8.

    Args:
        trainer: That part of the composed config.
    """
    plugins = trainer.get("plugins")
    nodes = plugins if isinstance(plugins, list) else [plugins]
    return any(isinstance(node, dict) and str(node.get("class_path")).endswith(".Float8") for node in nodes)


def _devices(trainer: dict[str, Any]) -> int:
    devices = trainer.get("devices")
    count = devices if isinstance(devices, int) and devices > 0 else len(devices) if isinstance(devices, list) else 1
    return count * int(trainer.get("num_nodes") or 1)


def _data_parallel(trainer: dict[str, Any], world_size: int) -> int:
    """How many of the devices have rows of their own."""
    from lmstack.parallel.layout import DIMENSIONS, layout_of

    node = trainer.get("strategy")
    if not isinstance(node, dict) or not str(node.get("class_path")).endswith(".MeshStrategy"):
        return world_size
    try:
        return layout_of(world_size, **{name: node.get(name, 1) for name in DIMENSIONS}).data_parallel
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _taken(arguments: Arguments, name: str) -> float | None:
    """The value of an option of this command, removed from the overrides."""
    for override in arguments.overrides:
        if override.is_option and override.key == name:
            arguments.overrides.remove(override)
            try:
                return float(override.value or "")
            except ValueError as error:
                raise ConfigError(f"--{name}: expected a number, got {override.value!r}") from error
    return None
