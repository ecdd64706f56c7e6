"""Import Lightning without what a run does not use."""

from typing import Any


def import_lightning(config: dict[str, Any]) -> None:
    """Import `lightning.pytorch`.

    Args:
        config: The composed config.
    """
    from lmstack.cli.quiet import quieten

    quieten()
