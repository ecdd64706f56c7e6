"""Which steps are outliers."""

import math
import random
import statistics

import pytest
import torch

from lmstack.optim.spike_detector import SpikeDetector


def detector(**options: float) -> SpikeDetector:
    return SpikeDetector(**({"threshold": 5.0, "window": 20, "min_history": 4} | options))  # type: ignore[arg-type]


def judge(one: SpikeDetector, loss: float, norm: float = 1.0) -> bool:
    return bool(one.judge(torch.tensor(loss), torch.tensor(norm)).is_rejected)


def test_the_score_is_the_distance_from_the_recent_median_in_units_of_the_usual_distance() -> None:
    """The same in plain Python: a list of accepted values, its last eight, and how far each was from those before."""
    one, draw = detector(threshold=3.0), random.Random(1)
    accepted: list[float] = []
    distances: list[float] = []
    for step in range(60):
        loss = 3.0 - 0.01 * step + draw.gauss(0, 0.1) + (2.0 if step in (30, 31, 45) else 0.0)
        verdict = one.judge(torch.tensor(loss), torch.tensor(1.0))
        level = statistics.median_low(accepted[-8:]) if accepted else math.nan
        noise = statistics.median_low(distances[-20:]) * 1.4826 if distances else math.nan
        score = (loss - level) / max(noise, 0.02 * abs(level)) if distances else math.nan
        if step >= 2:
            assert float(verdict.numbers[2]) == pytest.approx(score, rel=1e-3)
        assert bool(verdict.is_rejected) == (step in (30, 31, 45))
        if not verdict.is_rejected:
            if accepted:
                distances.append(abs(loss - level))
            accepted.append(loss)
    assert int(one.num_accepted) == 57


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_rejected_from_the_first_step_and_never_remembered(bad: float) -> None:
    one = detector()
    for _ in range(3):
        assert judge(one, bad)
        assert judge(one, 3.0, bad)
    assert int(one.num_accepted) == 0
    for _ in range(30):
        assert not judge(one, 3.0)
    assert judge(one, bad)
    assert not judge(one, 3.0)


def test_a_norm_counts_by_its_factor_not_its_size() -> None:
    one, draw = detector(), random.Random(1)
    for _ in range(20):
        assert not judge(one, 3.0, 1e-3 * math.exp(draw.gauss(0, 0.3)))
    assert not judge(one, 3.0, 2e-3)
    assert judge(one, 3.0, 1e-3 * math.exp(5 * 0.3 * 1.5))
    assert judge(one, 3.0, 1e3)
    assert not judge(one, 3.0, 0.0)  # a step without labels


def test_less_than_expected_is_no_spike() -> None:
    one = detector()
    for _ in range(20):
        judge(one, 3.0)
    assert not judge(one, 0.0, 1e-9)


def test_outliers_do_not_make_room_for_others() -> None:
    one = detector()
    for step in range(20):
        assert not judge(one, 3.0 + 0.1 * (step % 3))
    for _ in range(100):
        assert judge(one, 9.0, 1e6)
    assert not judge(one, 3.1)


def test_a_steep_fall_does_not_hide_a_spike() -> None:
    one = detector()
    for step in range(40):
        assert not judge(one, 10.0 * 0.98**step)
    assert judge(one, 10.0 * 0.98**40 * 3)  # 13; the run began at 10


def test_too_little_history_judges_nothing_finite() -> None:
    one = detector(min_history=10)
    for _ in range(9):
        judge(one, 3.0)
    assert not judge(one, 100.0)
    assert judge(one, 100.0)


def test_state_goes_on_as_if_nothing_had_happened() -> None:
    draw = random.Random(0)
    values = [(3 + draw.gauss(0, 0.2) + 3 * (draw.random() < 0.1), math.exp(draw.gauss(0, 0.2))) for _ in range(80)]
    whole = detector()
    expected = [judge(whole, *value) for value in values]
    assert any(expected)
    for cut in (0, 3, 25, 60):
        first, second = detector(), detector()
        seen = [judge(first, *value) for value in values[:cut]]
        second.load_state_dict(first.state_dict())
        assert seen + [judge(second, *value) for value in values[cut:]] == expected


def test_a_state_of_another_window_is_refused() -> None:
    with pytest.raises(ValueError, match=r"window=20, but the checkpoint's spike guard remembered 30"):
        detector().load_state_dict(detector(window=30).state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "threshold=0.0: must be above 0"),
        ({"min_history": 1}, "min_history=1: must be from 2"),
        ({"min_history": 21}, "min_history=21: must be from 2 to window=20"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detector(**options)
