"""Run by test_wrapped_weights.py on every rank: wrap a tied transformer, and print what became of its weights."""

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lmstack.models import Transformer
from tiny_transformer import config, tokens, transformer

ROWS = tokens(4, 9)


class Objective(nn.Module):
    """A stage in small: the loss multiplies hidden states by the head's weight itself."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.transformer = model
        self.was_tied = False

    def forward(self, rows: Tensor) -> Tensor:
        model = self.transformer
        hidden = model(rows[:, :-1])
        self.was_tied = same_storage(model.head_weight, model.embedding.weight)
        return nn.functional.cross_entropy(model.logits(hidden).flatten(0, 1), rows[:, 1:].flatten())


def same_storage(one: Tensor, other: Tensor) -> bool:
    one, other = ((t.to_local() if isinstance(t, DTensor) else t) for t in (one, other))
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard(module: Objective, mesh: DeviceMesh) -> Objective:
    for block in module.transformer.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(module, mesh=mesh)


def mesh_of(layout: str) -> DeviceMesh:
    size = dist.get_world_size()
    if layout == "replicas":
        return init_device_mesh("cpu", (size, 1), mesh_dim_names=("replica", "shard"))
    return init_device_mesh("cpu", (size,))


def tied(layout: str) -> dict[str, Any]:
    """What wrapping did to the tie, and how far the gradients are from those of one process."""
    reference, objective = Objective(transformer()), Objective(transformer())
    reference(ROWS).backward()
    wrapped = nn.parallel.DistributedDataParallel(objective) if layout == "ddp" else shard(objective, mesh_of(layout))
    rank, size = dist.get_rank(), dist.get_world_size()
    wrapped(ROWS[rank * len(ROWS) // size : (rank + 1) * len(ROWS) // size]).backward()
    model, expected = objective.transformer, dict(reference.named_parameters())
    errors = [float((whole(p.grad) - expected[name].grad).abs().max()) for name, p in objective.named_parameters()]
    return {
        "same object": model.head_weight is model.embedding.weight,
        "same storage": same_storage(model.head_weight, model.embedding.weight),
        "same storage in the forward": objective.was_tied,
        "same names": [name for name, _ in objective.named_parameters()] == list(expected),
        "rows without gradient": int((whole(model.embedding.weight.grad).abs().sum(1) == 0).sum()),
        "largest error": max(errors),
    }


def initialized(layout: str) -> dict[str, Any]:
    """Weights drawn after a build on meta and a wrap; seeds differ by rank, and the first one's is to count."""
    torch.manual_seed(3)
    expected = {name: p.detach() for name, p in Transformer(config()).named_parameters()}
    with torch.device("meta"):
        objective = Objective(Transformer(config()))
    shard(objective, mesh_of(layout)).to_empty(device="cpu")
    torch.manual_seed(3 + dist.get_rank())
    objective.transformer.reset_parameters()
    parameters = dict(objective.transformer.named_parameters())
    local = {name: p.to_local().flatten()[:16].tolist() for name, p in parameters.items() if p.ndim == 2}
    errors = [float((whole(p.detach()) - expected[name]).abs().max()) for name, p in parameters.items()]
    return {"local": local, "largest error": max(errors)}


def broadcast() -> float:
    """How far DDP's weights are from the first rank's, when every rank drew its own."""
    torch.manual_seed(3 + dist.get_rank())
    module = nn.parallel.DistributedDataParallel(Objective(Transformer(config())))
    torch.manual_seed(3)
    expected = Transformer(config())
    pairs = zip(module.module.transformer.parameters(), expected.parameters(), strict=True)
    return max(float((own - first).detach().abs().max()) for own, first in pairs)


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    report = {
        "tied": {layout: tied(layout) for layout in ("ddp", "shards")},
        "initialized": {layout: initialized(layout) for layout in ("shards", "replicas")},
        "broadcast": broadcast(),
    }
    gathered: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, report)
    if dist.get_rank() == 0:
        json.dump(gathered, sys.stdout)
    sys.stdout.flush()
    dist.barrier()
    os._exit(0)  # a gloo thread that still frees a tensor aborts a process whose interpreter is being torn down


if __name__ == "__main__":
    assert os.environ["WORLD_SIZE"]
    main()
