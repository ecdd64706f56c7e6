"""From the words of the command line to a training run, a sweep or a help text."""

import os
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
    from lmstack.cli.lean_imports import import_lightning

    import_lightning(composition.values)
    from lmstack.cli.training import train

    return train(command, composition)
