"""Devices, what they hold and how they are connected: a few known ones, or those of a YAML file."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

_GB, _TERA = 10**9, 10**12


@dataclass(frozen=True)
class Device:
    """A device that trains.

    Attributes:
        name: As in `cluster=8x<name>`.
        memory_bytes: Of its own.
        bf16_flops: Peak, dense, accumulating in float32; a second.
        fp32_flops: The same without tensor cores (PyTorch's default for float32).
        node_bytes_per_second: To the other devices of its node, in one direction.
        network_bytes_per_second: To another node, in one direction; its share of the node's.
        source: Where the figures are from.
    """

    name: str
    memory_bytes: float
    bf16_flops: float
    fp32_flops: float
    node_bytes_per_second: float
    network_bytes_per_second: float
    source: str


def _gpu(name: str, gigabytes: float, bf16: float, fp32: float, node: float, network: float, source: str) -> Device:
    return Device(name, gigabytes * _GB, bf16 * _TERA, fp32 * _TERA, node * _GB, network * _GB, source)


# Makers give links in both directions added up: half of that here. Networks are those of the systems named.
_DGX_H100 = "NVIDIA's H100 SXM and DGX H100 data sheets: NVLink 900 GB/s both ways, one 400 Gb/s adapter a GPU"
_DGX_H200 = "NVIDIA's H200 SXM and DGX H200 data sheets: NVLink 900 GB/s both ways, one 400 Gb/s adapter a GPU"
_DGX_B200 = "NVIDIA's DGX B200 data sheet, an eighth each: NVLink 1.8 TB/s both ways, one 400 Gb/s adapter a GPU"
_DGX_A100 = "NVIDIA's A100 SXM and DGX A100 data sheets: NVLink 600 GB/s both ways, one 200 Gb/s adapter a GPU"
_PCIE = "NVIDIA's data sheet; PCIe 4.0 x16, and 100 Gb/s for a node of four: an assumption"
_CPU = "an assumption: a core with AMX measured at 1 TFLOP/s (bfloat16) and 160 GFLOP/s; shared memory; 10 Gb/s"
DEVICES = {
    device.name: device
    for device in (
        _gpu("b200", 180.0, 2250.0, 75.0, 900.0, 50.0, _DGX_B200),
        _gpu("h200", 141.0, 989.0, 67.0, 450.0, 50.0, _DGX_H200),
        _gpu("h100", 80.0, 989.0, 67.0, 450.0, 50.0, _DGX_H100),
        _gpu("a100_80gb", 80.0, 312.0, 19.5, 300.0, 25.0, _DGX_A100),
        _gpu("a100_40gb", 40.0, 312.0, 19.5, 300.0, 25.0, _DGX_A100),
        _gpu("l40s", 48.0, 362.0, 91.6, 32.0, 3.1, _PCIE),
        _gpu("a10g", 24.0, 70.0, 31.2, 32.0, 3.1, _PCIE),
        _gpu("cpu", 16.0, 1.0, 0.16, 5.0, 1.25, _CPU),
    )
}
"""By name. GPUs are those with their own fast links, where there are several sorts of a name."""


@dataclass(frozen=True)
class Cluster:
    """Equal nodes of equal devices.

    Attributes:
        device: What each is.
        devices_per_node: How many share a machine.
        num_nodes: Machines.
    """

    device: Device
    devices_per_node: int
    num_nodes: int = 1

    @property
    def num_devices(self) -> int:
        """All of them."""
        return self.devices_per_node * self.num_nodes

    @property
    def text(self) -> str:
        """As `parse_cluster` reads it."""
        nodes = f"{self.num_nodes}x" if self.num_nodes > 1 else ""
        return f"{nodes}{self.devices_per_node}x{self.device.name}"

    def bandwidth(self, stride: int, size: int) -> tuple[str, float]:
        """The slowest link of a group, and what a device of it sends over that in a second.

        A group that has several devices on every node shares their networks: its ring leaves a node once.

        Args:
            stride: Ranks from one member to the next.
            size: Members.
        """
        if stride * size <= self.devices_per_node:
            return "node", self.device.node_bytes_per_second
        neighbours = max(1, self.devices_per_node // stride)
        network = self.device.network_bytes_per_second * neighbours
        return "network", min(network, self.device.node_bytes_per_second)


_TEXT = re.compile(r"(?:(?P<nodes>\d+)x)?(?P<devices>\d+)x(?P<name>[a-z]\w*)")


def parse_cluster(text: str) -> Cluster:
    """Read `8xh100`, `2x8xa100_80gb` (nodes, devices of a node, device), or the path of a YAML file.

    Args:
        text: What was typed. A file has `device`, with the fields of `Device` or the name of a known one,
            `devices_per_node` and `num_nodes`.

    Raises:
        ValueError: It is none of these.
    """
    known = ", ".join(DEVICES)
    if text.endswith((".yaml", ".yml")):
        return _read(Path(text))
    match = _TEXT.fullmatch(text.lower())
    if match is None:
        raise ValueError(
            f"cluster={text}: expected <devices>x<name> or <nodes>x<devices>x<name>, such as 8xh100 or 2x8xa100_80gb, "
            f"or a YAML file. Known: {known}."
        )
    if match["name"] not in DEVICES:
        raise ValueError(
            f"cluster={text}: no known device {match['name']!r}. Known: {known}; or describe it in a file."
        )
    devices, nodes = int(match["devices"]), int(match["nodes"] or 1)
    if devices < 1 or nodes < 1:
        raise ValueError(f"cluster={text}: there must be at least one device.")
    return Cluster(DEVICES[match["name"]], devices, nodes)


def _read(path: Path) -> Cluster:
    try:
        values: dict[str, Any] = yaml.safe_load(path.read_text())
        device = values.pop("device")
        if isinstance(device, str):
            return Cluster(DEVICES[device], **values)
        facts: dict[str, Any] = {
            name: value if name in ("name", "source") else float(value) for name, value in device.items()
        }
        return Cluster(Device(**{"name": path.stem, "source": str(path)} | facts), **values)
    except (OSError, AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"cluster={path}: cannot be read ({error!r}). It has devices_per_node, num_nodes and device: a known name, "
            "or memory_bytes, bf16_flops, fp32_flops, node_bytes_per_second and network_bytes_per_second."
        ) from error
