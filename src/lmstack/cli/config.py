"""`lmstack config`: compose a config and print it, without importing torch."""

import sys

from lmstack.cli.args import parse_arguments

HELP = """\
usage: lmstack config --config conf/<name>.yaml [key=value ...]

Prints the composed config, every file, override and interpolation resolved. The output is itself a config:
`lmstack config --config conf/pretrain.yaml model=llama_20m > mine.yaml; lmstack fit --config mine.yaml`.
"""


def main(argv: list[str]) -> int:
    """Print a composed config.

    Args:
        argv: What follows `lmstack config`.

    Returns:
        The exit status.
    """
    arguments = parse_arguments(argv)
    if arguments.wants_help:
        print(HELP, end="")
        return 0
    import yaml  # type: ignore[import-untyped]

    from lmstack.cli.compose import compose

    yaml.safe_dump(compose(arguments).values, sys.stdout, sort_keys=False, allow_unicode=True)
    return 0
