"""Float32 copies: what bfloat16 loses, exact resume, and everything else that an optimizer is asked for."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lmstack.optim.master_weights import MASTER, MasterWeights
from lmstack.optim.optimizers import AdamWConfig, MuonConfig, build_optimizer
from lmstack.optim.skipping import skip_coming_step, skip_on_device
from tiny_transformer import transformer

CONFIGS: list[Any] = [AdamWConfig(lr=1e-3), MuonConfig(lr=1e-3, adamw_lr=1e-3)]


def model_of(config: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = transformer(num_layers=1).to(torch.bfloat16)
    nn.init.ones_(model.final_norm.weight)
    return model, build_optimizer(config, model)


def with_masters(config: Any) -> Any:
    return type(config)(**{**config.__dict__, "master_weights": True})


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(other[key])) for key, value in one.items())


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, first: int = 0) -> None:
    for step in range(first, first + count):
        generator = torch.Generator().manual_seed(step)
        for p in model.parameters():
            p.grad = torch.rand(p.shape, generator=generator).to(p.dtype) + 0.5  # always the same way
        optimizer.step()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_updates_that_vanish_in_bfloat16_add_up_in_the_copies(config: Any) -> None:
    """A step of AdamW is 1e-3 here, and of a weight of 1 bfloat16 knows no smaller change than 4e-3."""
    results = {}
    for each in (config, with_masters(config)):
        model, optimizer = model_of(each)
        gain = model.final_norm.weight  # AdamW's in both cases
        take_steps(model, optimizer, 10)
        results[each.master_weights] = gain.detach().float()
    assert torch.equal(results[False], torch.ones_like(results[False]))
    assert (results[True] < 0.995).all()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_copies_take_the_steps_of_a_float32_model(config: Any) -> None:
    model, optimizer = model_of(with_masters(config))
    wide = copy.deepcopy(model).float()
    other = build_optimizer(config, wide)
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        for p, q in zip(model.parameters(), wide.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=generator).to(torch.bfloat16)
            q.grad = p.grad.float()
        optimizer.step()
        other.step()
    for p, q in zip(model.parameters(), wide.parameters(), strict=True):
        assert torch.equal(p, q.to(torch.bfloat16))
    numbers = {id(p): n for n, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    state = optimizer.state_dict()["state"]
    for p, q in zip(model.parameters(), wide.parameters(), strict=True):
        assert torch.equal(state[numbers[id(p)]][MASTER], q)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_a_resumed_run_goes_on_bit_for_bit(config: Any) -> None:
    whole, optimizer = model_of(with_masters(config))
    take_steps(whole, optimizer, 3)
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(whole.state_dict())
    take_steps(whole, optimizer, 3, first=3)
    resumed, fresh = model_of(with_masters(config))
    resumed.load_state_dict(weights)
    fresh.load_state_dict(saved)
    take_steps(resumed, fresh, 3, first=3)
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)
    one, other = optimizer.state_dict(), fresh.state_dict()
    assert one["param_groups"] == other["param_groups"]
    for number, entry in one["state"].items():
        assert all(
            torch.equal(torch.as_tensor(v), torch.as_tensor(other["state"][number][k])) for k, v in entry.items()
        )
    assert all(entry[MASTER].dtype == torch.float32 for entry in other["state"].values())


def test_without_copies_in_a_checkpoint_they_start_from_the_weights() -> None:
    model, optimizer = model_of(CONFIGS[0])
    take_steps(model, optimizer, 2)
    _, fresh = model_of(with_masters(CONFIGS[0]))
    assert isinstance(fresh, MasterWeights)
    for parameter, weight in zip(
        (p for p, _ in fresh._pairs()), (p for g in optimizer.param_groups for p in g["params"])
    ):
        parameter.data.copy_(weight)
    fresh.load_state_dict(optimizer.state_dict())
    assert all(torch.equal(p.float(), m) for p, m in fresh._pairs())


def test_a_schedule_reaches_the_copies() -> None:
    model, optimizer = model_of(with_masters(CONFIGS[0]))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    take_steps(model, optimizer, 1)
    scheduler.step()
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(before[number][MASTER], after[number][MASTER]) for number in before)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
@pytest.mark.parametrize("skip", [skip_coming_step, skip_on_device], ids=["by hand", "on the device"])
def test_a_skipped_step_leaves_weights_copies_and_state(config: Any, skip: Any) -> None:
    model, optimizer = model_of(with_masters(config))
    take_steps(model, optimizer, 2)
    before, weights = copy.deepcopy(optimizer.state_dict()["state"]), copy.deepcopy(model.state_dict())
    for p in model.parameters():
        p.grad = torch.full_like(p, float("inf"))
    skip(optimizer, torch.tensor(True))
    optimizer.step()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    after = optimizer.state_dict()["state"]
    for number, entry in before.items():
        assert_same(entry, after[number])


def test_float32_weights_need_no_copies() -> None:
    with pytest.raises(ValueError, match=r"master_weights=true with weights in float32.*bf16-true"):
        build_optimizer(with_masters(CONFIGS[0]), transformer(num_layers=1))
