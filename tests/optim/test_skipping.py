"""A step that is left out leaves no trace, on the host's word and on the device's."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmstack.optim.muon import MuonAdamW
from lmstack.optim.optimizers import AdamWConfig, MuonConfig, build_optimizer
from lmstack.optim.skipping import skip_coming_step, skip_on_device
from tiny_run import tiny_stage

Skip = Callable[[torch.optim.Optimizer, Tensor], None]
every_way = pytest.mark.parametrize("skip", [skip_coming_step, skip_on_device])
every_optimizer = pytest.mark.parametrize(
    "config", [AdamWConfig(lr=1e-2), MuonConfig(lr=1e-2, adamw_lr=1e-2)], ids=["adamw", "muon"]
)


def made(config: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = tiny_stage().transformer
    return model, build_optimizer(config, model)


def fill(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def bits(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """As integers: a zero that changed its sign would compare equal as a float."""
    state = [t for entry in optimizer.state_dict()["state"].values() for t in entry.values()]
    return [t.detach().clone().contiguous().view(torch.int32) for t in [*model.parameters(), *state]]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@every_way
@every_optimizer
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30, 1.0])
def test_a_skipped_step_changes_no_bit(skip: Skip, config: Any, bad: float) -> None:
    model, optimizer = made(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.view(-1)[0] = -0.0
    for seed in range(3):
        fill(model, seed)
        optimizer.step()
    for entry in optimizer.state.values():
        for value in entry.values():
            if value.ndim:
                value.view(-1)[0] = -0.0
    before = bits(model, optimizer)
    fill(model, 9)
    for parameter in model.parameters():
        parameter.grad.mul_(bad)  # type: ignore[union-attr]
    skip(optimizer, torch.tensor(True))
    optimizer.step()
    assert same(bits(model, optimizer), before)


@every_way
@every_optimizer
def test_a_step_that_is_not_skipped_is_the_plain_one_before_and_after_a_skip(skip: Skip, config: Any) -> None:
    (model, optimizer), (plain, reference) = made(config), made(config)
    for seed, is_skipped in enumerate([True, False, False, True, False]):
        fill(model, seed)
        skip(optimizer, torch.tensor(is_skipped))
        optimizer.step()
        if not is_skipped:
            fill(plain, seed)
            reference.step()
    assert same(bits(model, optimizer), bits(plain, reference))


@every_optimizer
def test_a_state_that_was_loaded_can_be_skipped_too(config: Any) -> None:
    model, optimizer = made(config)
    fill(model, 0)
    optimizer.step()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    before = bits(model, optimizer)
    fill(model, 1)
    skip_on_device(optimizer, torch.tensor(True))
    optimizer.step()
    assert same(bits(model, optimizer), before)


def test_an_optimizer_without_a_switch_is_refused_where_the_host_does_not_know() -> None:
    model = tiny_stage().transformer
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"SGD cannot leave out a step"):
        skip_on_device(plain, torch.tensor(True))
    fill(model, 0)
    before = bits(model, plain)
    skip_coming_step(plain, torch.tensor(True))  # on a CPU any will do
    plain.step()
    assert same(bits(model, plain), before)


def test_muon_skips_frozen_matrices_and_goes_on_with_all_groups() -> None:
    model, optimizer = made(MuonConfig(lr=1e-2, adamw_lr=1e-2))
    assert isinstance(optimizer, MuonAdamW)
    fill(model, 0)
    first = next(p for group in optimizer.param_groups if group["algorithm"] == "muon" for p in group["params"])
    first.grad = None
    kept = first.detach().clone()
    skip_on_device(optimizer, torch.tensor(False))
    optimizer.step()
    assert torch.equal(first, kept)
    assert first not in optimizer.state
    others = [p for group in optimizer.param_groups for p in group["params"] if p is not first]
    assert all(p in optimizer.state for p in others)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_optimizer
def test_on_a_gpu_nothing_waits_for_the_decision(config: Any) -> None:
    from lmstack.optim.spike_detector import SpikeDetector

    model = tiny_stage().transformer.cuda()
    optimizer = build_optimizer(config, model)
    detector = SpikeDetector(threshold=8.0, window=16, min_history=4)
    detector.to(torch.device("cuda"))
    loss, norm, broken = (torch.tensor(value, device="cuda") for value in (3.0, 1.0, math.nan))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    before = bits(model, optimizer)
    torch.cuda.set_sync_debug_mode("error")
    try:
        skip_coming_step(optimizer, detector.judge(loss, broken).is_rejected)
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert same(bits(model, optimizer), before)
    skip_coming_step(optimizer, detector.judge(loss, norm).is_rejected)
    optimizer.step()
    assert not same(bits(model, optimizer), before)
