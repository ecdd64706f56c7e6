"""Run by test_gradient_clipping.py on every rank: clip a sharded model's gradients, and print what the norm was."""

import json
import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lmstack.optim.gradient_clipping import clip_grad_norm
from lmstack.optim.muon import MuonAdamW


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4, bias=False), nn.LayerNorm(4))


def backward(module: nn.Module, factor: float) -> None:
    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    (module(inputs).pow(3).sum() * factor).backward()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded(layout: str) -> nn.Module:
    module = model()
    size = dist.get_world_size()
    if layout == "fsdp2":
        mesh = init_device_mesh("cpu", (size,))
        fully_shard(module[0], mesh=mesh)  # the last layers are in the root's own group
        return fully_shard(module, mesh=mesh)
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("tp",))
    # LayerNorm stays a plain tensor: plain and distributed gradients in one norm.
    return parallelize_module(module, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def clipped(module: nn.Module, max_norm: float, factor: float) -> tuple[float, list[torch.Tensor]]:
    backward(module, factor)
    norm = clip_grad_norm(module.parameters(), max_norm)
    gradients = [whole(p.grad) for p in module.parameters()]
    module.zero_grad()
    return norm.item(), gradients


def muon_step(module: nn.Module) -> list[torch.Tensor]:
    matrices = [p for p in module.parameters() if p.ndim == 2]
    vectors = [p for p in module.parameters() if p.ndim < 2]
    optimizer = MuonAdamW(
        [{"params": matrices, "algorithm": "muon", "lr": 0.1}, {"params": vectors, "algorithm": "adamw", "lr": 0.1}]
    )
    backward(module, 1.0)
    optimizer.step()
    return [whole(p.detach()) for p in module.parameters()]


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    report = {}
    for layout in ("fsdp2", "tensor_parallel"):
        module, reference = sharded(layout), model()
        for case, max_norm, factor in (("clipped", 0.5, 1.0), ("measured", 1e9, 1.0), ("overflow", 0.5, float("inf"))):
            norm, gradients = clipped(module, max_norm, factor)
            plain_norm, plain_gradients = clipped(reference, max_norm, factor)
            errors = [(a - b).abs().max().item() for a, b in zip(gradients, plain_gradients, strict=True)]
            report[f"{layout} {case}"] = {"norm": norm, "plain_norm": plain_norm, "largest_error": max(errors)}
        errors = [(a - b).abs().max().item() for a, b in zip(muon_step(module), muon_step(reference), strict=True)]
        report[f"{layout} muon"] = {"largest_error": max(errors)}
    gathered: list[dict[str, dict[str, float]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, report)
    if dist.get_rank() == 0:
        json.dump(gathered, sys.stdout)
    sys.stdout.flush()
    dist.barrier()
    os._exit(0)  # a gloo thread that still frees a tensor aborts a process whose interpreter is being torn down


if __name__ == "__main__":
    assert os.environ["WORLD_SIZE"]
    main()
