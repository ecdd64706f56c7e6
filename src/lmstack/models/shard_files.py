"""Tensors in one file a process, each with the parts that the process holds; read back whole, or cut in any other way.

The files are safetensors with the place of every part in their headers, which torch.distributed.checkpoint writes and
reads. Its import takes a second, and is here only when there are shards.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SHARDS = "shards"
"""The folder in a checkpoint."""

MODULE = "module."
OPTIMIZER = "optimizer."
AVERAGE = "average."
"""What the names of weights, of optimizer states and of averaged weights begin with."""


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> list[Path]:
    """Write what this process holds. Every process must call it; if it fails in one, it raises in all.

    Args:
        folder: Made when it does not exist; the same for all.
        tensors: By name; of one that is sharded, this process writes its part, of one that several hold, one does.

    Returns:
        The files that this process wrote.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    return list(folder.glob(f"shard-{torch.distributed.get_rank() + 1:05d}-*"))


def read_shards_into(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors in place, each with the part of it that is here; no process waits for another.

    Args:
        folder: Of the shards.
        tensors: By name, sharded or whole.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    if not tensors:
        return
    target: dict[str, Any] = dict(tensors)
    load(target, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)


def names_in(folder: Path, prefix: str) -> dict[str, list[str]]:
    """The last words of the stored names, by what is before them.

    Args:
        folder: Of the shards.
        prefix: Of the names that are looked for; taken off.
    """
    found: dict[str, list[str]] = {}
    for path in _stored(folder):
        if path.startswith(prefix):
            name, _, last = path.removeprefix(prefix).rpartition(".")
            found.setdefault(name, []).append(last)
    return found


def read_whole(folder: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors whose names begin so, whole, in host memory.

    Args:
        folder: Of the shards.
        prefix: Taken off the names.
    """
    whole = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in _stored(folder).items()
        if name.startswith(prefix)
    }
    read_shards_into(folder, whole)
    return {name.removeprefix(prefix): tensor for name, tensor in whole.items()}


def _stored(folder: Path) -> dict[str, Any]:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    return dict(HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)
