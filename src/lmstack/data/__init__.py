"""From token shards to batches. Importing this package is cheap; its parts load when they are first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmstack.data.batch import IGNORE_INDEX, PADDING_DOCUMENT, TokenBatch
    from lmstack.data.batch_size import BatchSizePlan, BatchSizeWarmup
    from lmstack.data.manifest import Manifest
    from lmstack.data.mixture import Mixture
    from lmstack.data.packing import pack_rows
    from lmstack.data.step_loader import StepLoader, ValidationLoader
    from lmstack.data.token_shards import TokenShards

_HOMES = {
    "IGNORE_INDEX": "batch",
    "PADDING_DOCUMENT": "batch",
    "TokenBatch": "batch",
    "BatchSizePlan": "batch_size",
    "BatchSizeWarmup": "batch_size",
    "Manifest": "manifest",
    "Mixture": "mixture",
    "pack_rows": "packing",
    "StepLoader": "step_loader",
    "ValidationLoader": "step_loader",
    "TokenShards": "token_shards",
}

__all__ = [
    "IGNORE_INDEX",
    "PADDING_DOCUMENT",
    "BatchSizePlan",
    "BatchSizeWarmup",
    "Manifest",
    "Mixture",
    "StepLoader",
    "TokenBatch",
    "TokenShards",
    "ValidationLoader",
    "pack_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
