"""The coefficient of the KL divergence."""

import pytest

from lmstack.rl.kl_control import AdaptiveKL, FixedKL, KLController


def test_a_fixed_coefficient_stays() -> None:
    controller = KLController(FixedKL(0.3))
    controller.update(100.0, 64)
    assert controller.coef == 0.3


def test_an_adaptive_one_follows_its_target() -> None:
    controller = KLController(AdaptiveKL(0.1, target=2.0, horizon=1000))
    controller.update(2.2, 100)  # error 0.1
    assert controller.coef == pytest.approx(0.1 * 1.01)
    controller.update(1.9, 200)  # error -0.05
    assert controller.coef == pytest.approx(0.1 * 1.01 * 0.99)
    controller.update(2.0, 100)
    assert controller.coef == pytest.approx(0.1 * 1.01 * 0.99)


@pytest.mark.parametrize(("kl", "factor"), [(50.0, 1.02), (0.0, 0.98), (-3.0, 0.98)])
def test_an_error_counts_up_to_a_fifth(kl: float, factor: float) -> None:
    controller = KLController(AdaptiveKL(0.1, target=2.0, horizon=1000))
    controller.update(kl, 100)
    assert controller.coef == pytest.approx(0.1 * factor)


def test_its_state_goes_on() -> None:
    one, other = (KLController(AdaptiveKL(0.1, target=2.0)) for _ in range(2))
    one.update(7.0, 100)
    other.load_state_dict(one.state_dict())
    assert other.coef == one.coef != 0.1


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kl\.coef=-0\.1: must not be negative"):
        FixedKL(-0.1)
    for field, arguments in {
        "coef": {"coef": 0.0, "target": 1.0},
        "target": {"coef": 0.1, "target": 0.0},
        "horizon": {"coef": 0.1, "target": 1.0, "horizon": 0},
    }.items():
        with pytest.raises(ValueError, match=rf"kl\.{field}=0.*needs it above 0"):
            AdaptiveKL(**arguments)
    assert FixedKL(0.0).coef == 0.0
