"""From the words of the command line to a training run, a sweep or a help text."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from lmstack.cli.args import parse_arguments

SUPERVISED = "LMSTACK_SUPERVISED"
"""Set in the environment of a process that another one watches over."""


def launch(command: str, argv: list[str]) -> int:
    """Run `fit`, `validate`, `test` or `predict`.

    Args:
        command: Which.
        argv: What follows it.

    Returns:
        The exit status.
    """
    arguments = parse_arguments(argv)
    if arguments.wants_help:
        from lmstack.cli.help import show_help

        return show_help(command)
    if arguments.is_sweep:
        from lmstack.cli.sweep import sweep

        return sweep(command, arguments)
    from lmstack.cli.compose import compose
    from lmstack.cli.resolvers import RUN_ID
    from lmstack.cli.run_folder import choose_run_to_continue

    is_named = RUN_ID in os.environ  # by a sweep, or by the first process of this run
    composition = compose(arguments)  # before torch is imported: most mistakes are told in a third of a second
    if not is_named and choose_run_to_continue(composition):
        composition = compose(arguments)
    if command == "fit" and SUPERVISED not in os.environ:
        from lmstack.cli.supervisor import supervise, supervisor_config

        if config := supervisor_config(composition.values.get("supervise")):
            return supervise(config, arguments, Path(composition.values["trainer"]["default_root_dir"]))
    if command == "fit" and would_meet_the_dead(os.environ):
        print(
            "torchrun would start workers again with the addresses of those that died: export "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before it (docs/how_to/when_something_goes_wrong.md)",
            file=sys.stderr,
        )
    from lmstack.cli.lean_imports import import_lightning

    import_lightning(composition.values)
    from lmstack.cli.training import train

    return train(command, composition)


def would_meet_the_dead(environment: Mapping[str, str]) -> bool:
    """Whether torchrun starts workers again, but keeps one store for all of their lives.

    PyTorch's `_create_c10d_store` takes the agent's store for a new one at every restart and adds no prefix;
    `DynamicRendezvousHandler` keeps the first (torch 2.13).

    Args:
        environment: Of this process.
    """
    is_first = environment.get("RANK") == "0"
    restarts = int(environment.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
    return is_first and restarts and environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
