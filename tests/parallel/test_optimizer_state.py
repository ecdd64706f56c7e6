from typing import Any

import torch
from torch import nn

from lmstack.optim.optimizers import AdamWConfig, build_optimizer
from lmstack.parallel.optimizer_state import by_name, fitted, merged
from tiny_transformer import transformer


def stepped(module: nn.Module, whole: Any) -> torch.optim.Optimizer:
    optimizer = build_optimizer(AdamWConfig(lr=0.1), whole, module=module)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()
    return optimizer


def halves(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Two modules with half of the parameters each, under the names of the whole; the embedding is in both."""
    found = []
    for own in ("blocks.0.", "blocks.1."):
        half = nn.Module()
        half.blocks = nn.ModuleList(
            block if f"blocks.{number}." == own else nn.Identity() for number, block in enumerate(model.blocks)
        )
        half.embedding = model.embedding
        found.append(half)
    found[1].final_norm = model.final_norm
    return found[0], found[1]


def test_states_of_the_parts_make_that_of_the_whole() -> None:
    model = transformer()
    assert model.config.tied_embeddings
    assert len(model.blocks) == 2
    whole = stepped(model, model).state_dict()
    parts = [stepped(half, model).state_dict() for half in halves(transformer())]
    joined = merged(parts, [name for name, _ in model.named_parameters()])
    assert joined["param_groups"] == whole["param_groups"]
    assert list(by_name(joined)) == list(by_name(whole))
    for name, entry in by_name(whole).items():
        for key, value in entry.items():
            assert torch.equal(by_name(joined)[name][key], value), (name, key)


def test_a_part_takes_its_own_from_the_whole() -> None:
    model = transformer()
    whole = stepped(model, model).state_dict()
    whole["param_groups"][0]["lr"] = 0.25
    first, _ = halves(transformer())
    optimizer = build_optimizer(AdamWConfig(lr=0.1), model, module=first)
    optimizer.load_state_dict(fitted(whole, optimizer))
    wanted, got = by_name(whole), by_name(optimizer.state_dict())
    assert set(got) == {name for name, _ in first.named_parameters()}
    assert all(torch.equal(got[name]["exp_avg"], wanted[name]["exp_avg"]) for name in got)
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_kernels_stay_those_of_the_run_that_goes_on() -> None:
    model = transformer()
    whole = stepped(model, model).state_dict()
    for group in whole["param_groups"]:
        group["fused"] = False
    optimizer = build_optimizer(AdamWConfig(lr=0.1), model)
    assert all(group["fused"] for group in fitted(whole, optimizer)["param_groups"])
