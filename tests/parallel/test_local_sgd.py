from typing import Any

import pytest
import torch

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
