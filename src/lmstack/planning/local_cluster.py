"""The devices of the machine at hand, as a cluster."""

import os
from dataclasses import replace
from typing import Any

import torch

from lmstack.planning.cluster import DEVICES, Cluster, Device


def local_cluster(accelerator: str, devices: Any, num_nodes: int) -> Cluster:
    """What Lightning would take.

    Args:
        accelerator: As Lightning names it.
        devices: A number, a list, or `auto` for all GPUs (on a CPU one process).
        num_nodes: Machines like this one.

    Raises:
        ValueError: The GPUs are of a sort that no figures are known of.
    """
    is_cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    present = torch.cuda.device_count() if is_cuda else 1
    if "WORLD_SIZE" in os.environ:  # a launcher has decided
        world_size = int(os.environ["WORLD_SIZE"])
        present = int(os.environ.get("LOCAL_WORLD_SIZE", world_size // num_nodes))
        num_nodes = world_size // present
    elif isinstance(devices, list):
        present = len(devices)
    elif str(devices).isdigit():
        present = int(devices)
    return Cluster(_gpu() if is_cuda else _cpu(present), present, num_nodes)


def _cpu(num_processes: int) -> Device:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return replace(DEVICES["cpu"], memory_bytes=memory / num_processes)


def _gpu() -> Device:
    properties = torch.cuda.get_device_properties(0)
    words = properties.name.lower().replace("-", " ").split()
    for known in sorted(DEVICES.values(), key=lambda device: -len(device.name)):
        if known.name.split("_")[0] in words and properties.total_memory > 0.8 * known.memory_bytes:
            return replace(known, memory_bytes=float(properties.total_memory))
    raise ValueError(
        f"strategy=auto: no figures of {properties.name} are known ({', '.join(DEVICES)} are). Describe it in a file, "
        "cluster=<file>.yaml, or name a strategy."
    )
