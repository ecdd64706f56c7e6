"""Fully sharded data parallelism: every process keeps a part of each weight (Zhao et al. 2023, arXiv:2304.11277)."""

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from lmstack.models.block import Block


def shard(root: nn.Module, mesh: DeviceMesh) -> None:
    """Shard the blocks of a model one by one, and what is left as the root's own group.

    The root's group stays gathered between its forward and backward: the loss multiplies by the head's weight itself.

    Args:
        root: Whose `forward` is called first; changed in place.
        mesh: Of one dimension, shards; or of two, replicas and shards.
    """
    for module in root.modules():
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
    fully_shard(root, mesh=mesh, reshard_after_forward=False)


def put_back(module: nn.Module) -> None:
    """Free what a forward without a backward has left gathered.

    Args:
        module: With sharded modules in it, or none.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
