from typing import Any

import pytest
import torch
from lightning.pytorch.strategies.strategy import Strategy

from lmstack.parallel.local_sgd import LocalSGD


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"period": 0}, r"period=0: must be at least 1"),
        ({"outer_lr": 0.0}, r"outer_lr=0.0"),
        ({"outer_momentum": 1.0}, r"outer_momentum=1.0"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LocalSGD(**arguments)


def test_an_exchange_is_a_nesterov_step_along_the_mean_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes at 1.0 and 3.0 from an anchor of 4.0: the mean way back is 2; by hand, twice."""
    strategy = LocalSGD(period=1, outer_lr=0.5, outer_momentum=0.5)
    here, elsewhere = torch.tensor([1.0]), 3.0
    strategy.parameters, strategy.anchor = {"w": here}, {"w": torch.tensor([4.0])}
    strategy.outer = torch.optim.SGD([strategy.anchor["w"]], lr=0.5, momentum=0.5, nesterov=True)
    monkeypatch.setattr(LocalSGD, "world_size", 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda grad: grad.add_((strategy.anchor["w"] - elsewhere) / 2))
    strategy._exchange()
    # gradient 2, momentum 2, step 0.5 (2 + 0.5 * 2) = 1.5
    assert here.item() == pytest.approx(2.5)
    here.fill_(1.5)
    elsewhere = 1.5
    strategy._exchange()
    # gradient 1, momentum 0.5 * 2 + 1 = 2, step 0.5 (1 + 0.5 * 2) = 1
    assert here.item() == strategy.anchor["w"].item() == pytest.approx(1.5)


def test_a_checkpoint_that_is_loaded_while_training_puts_back_weights_anchor_momentum_and_the_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a rollback does: between the two exchanges of a period of 4, the second process of two."""
    strategy = LocalSGD(period=4)
    anchor = torch.tensor([4.0])
    strategy.parameters, strategy.anchor = {"w": torch.tensor([9.0])}, {"w": anchor}
    strategy.outer, strategy.num_steps = torch.optim.SGD([anchor], lr=0.7, momentum=0.9, nesterov=True), 11
    processes = [{"weights": {"w": torch.tensor([value])}, "optimizer_states": [value]} for value in (1.0, 3.0)]
    momentum = {"state": {0: {"momentum_buffer": torch.tensor([0.5])}}}
    checkpoint = {
        "local_sgd": {"processes": processes, "anchor": {"w": torch.tensor([2.0])}, "outer": momentum, "num_steps": 6}
    }
    restored: list[Any] = []
    monkeypatch.setattr(LocalSGD, "world_size", 2)
    monkeypatch.setattr(LocalSGD, "global_rank", 1)
    monkeypatch.setattr(Strategy, "load_checkpoint", lambda *_: checkpoint)
    monkeypatch.setattr(Strategy, "load_optimizer_state_dict", lambda _, own: restored.append(own["optimizer_states"]))
    strategy.load_checkpoint("step-00000006")
    strategy.load_optimizer_state_dict(checkpoint)
    assert restored == [[3.0]]
    assert strategy.parameters["w"].item() == 3.0
    assert (anchor.item(), strategy.num_steps) == (2.0, 6)
    assert strategy.outer.state[anchor]["momentum_buffer"].item() == 0.5
    assert strategy._loaded is None
