import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmstack.data.batch_size import BatchSizePlan
from lmstack.data.mixture import WEIGHT_UNIT
from lmstack.data.mixture_plan import MixturePhase, MixturePlan, plan_mixture
from lmstack.data.shares import cap_shares

SOURCES = {"web": 64_000, "books": 4_000, "code": 16_000}
SEQUENCE = 4


def planned(max_tokens: int | None = 40_000, **options: object) -> MixturePlan:
    return plan_mixture(SOURCES, BatchSizePlan(4, SEQUENCE, max_tokens), 0, **options)  # type: ignore[arg-type]


def of(web: float, books: float, code: float) -> dict[str, float]:
    return {"web": float(web), "books": float(books), "code": float(code)}


def shares_of(plan: MixturePlan, phase: int = 0) -> list[float]:
    weights = np.array(plan.mixture.phases[phase].weights)
    return (weights / weights.sum()).tolist()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"weights": of(1, 3, 4)}, [1 / 8, 3 / 8, 4 / 8]),
        ({"temperature": 1.0}, [64 / 84, 4 / 84, 16 / 84]),
        ({"temperature": 2.0}, [8 / 14, 2 / 14, 4 / 14]),  # square roots of 64, 4, 16
        ({"temperature": 3.0}, np.cbrt([64, 4, 16]) / np.cbrt([64, 4, 16]).sum()),
        ({"temperature": 1.0, "weights": of(1, 4, 2)}, [64 / 112, 16 / 112, 32 / 112]),
        ({"temperature": 2.0, "weights": of(1, 0, 3)}, [8 / 20, 0, 12 / 20]),
    ],
)
def test_shares_are_the_weight_times_a_root_of_the_size(options: dict[str, object], expected: list[float]) -> None:
    assert shares_of(planned(**options)) == pytest.approx(list(expected), abs=1e-12)


def test_a_phase_with_neither_weights_nor_temperature_goes_by_size() -> None:
    by_size = pytest.approx([64 / 84, 4 / 84, 16 / 84], abs=1e-12)
    plan = planned(phases=[MixturePhase("50%"), MixturePhase("60%", temperature=2.0)])
    assert (shares_of(plan, 0), shares_of(plan, 1)) == (by_size, by_size)
    assert shares_of(plan, 2) == pytest.approx([8 / 14, 2 / 14, 4 / 14], abs=1e-12)


def test_a_very_high_temperature_is_even_and_none_takes_every_row_once() -> None:
    assert shares_of(planned(temperature=1e9)) == pytest.approx([1 / 3] * 3, abs=1e-6)
    assert planned().mixture.weights is None


def test_the_shares_are_what_the_rows_show() -> None:
    plan = planned(temperature=2.0, phases=[MixturePhase("80%", of(0, 1, 1))])
    rows = plan.mixture.rows(np.arange(10_000))
    first, second = rows.source[:8000], rows.source[8000:]
    assert (np.bincount(first, minlength=3) - 8000 * np.array([8, 2, 4]) / 14).round().tolist() == [0, 0, 0]
    assert np.bincount(second, minlength=3).tolist() == [0, 1000, 1000]


def test_the_table_says_tokens_shares_and_epochs_of_each_phase() -> None:
    plan = planned(weights=of(2, 1, 1), phases=[MixturePhase("75%", of(0, 1, 0))])
    table = plan.table(10_000)
    assert [line[:4] for line in table] == [
        (1, "web", 15_000, 0.5),
        (1, "books", 7_500, 0.25),
        (1, "code", 7_500, 0.25),
        (2, "web", 0, 0.0),
        (2, "books", 10_000, 1.0),
        (2, "code", 0, 0.0),
    ]
    assert [line.epochs for line in table] == pytest.approx([15 / 64, 7.5 / 4, 7.5 / 16, 15 / 64, 17.5 / 4, 7.5 / 16])
    rows = plan.mixture.rows(np.arange(10_000))
    assert rows.epoch[rows.source == 1].max() == 4
    assert [line[:3] for line in plan.table(1000)] == [(1, "web", 2000), (1, "books", 1000), (1, "code", 1000)]
    assert [line.tokens for line in planned().table(42_000)] == [128_000, 8_000, 32_000]
    assert {line.epochs for line in planned().table(42_000)} == {2.0}


def test_a_capped_source_stops_at_its_cap_and_the_others_share_the_rest_in_proportion() -> None:
    plan = planned(weights=of(1, 2, 1), max_epochs={"books": 2.5})
    # books: half of 40,000 would be 5 epochs of 4,000; 2.5 epochs are 10,000; 30,000 go half to web, half to code.
    assert [(line.tokens, line.is_capped) for line in plan.table(10_000)] == [
        (15_000, False),
        (10_000, True),
        (15_000, False),
    ]


def test_what_a_capped_source_passes_on_can_cap_another() -> None:
    plan = planned(weights=of(1, 5, 4), max_epochs=1.0)
    # books 4,000, then code: 4/5 of 36,000 is above 16,000, so web takes the 20,000 that are left.
    assert [line.tokens for line in plan.table(10_000)] == pytest.approx(
        [20_000, 4_000, 16_000], abs=40_000 / WEIGHT_UNIT
    )
    assert [line.is_capped for line in plan.table(10_000)] == [False, True, False]  # code gets what it asked for


def test_a_later_phase_gets_what_an_earlier_one_left_of_the_cap() -> None:
    phases = [MixturePhase("50%", of(1, 1, 0))]
    plan = planned(weights=of(3, 1, 0), max_epochs={"books": 2.0}, phases=phases)
    # phase 1: books 5,000 of 20,000; phase 2: 3,000 of its cap are left, where half would be 10,000
    tokens = [line.tokens for line in plan.table(10_000)]
    assert tokens == pytest.approx([15_000, 5_000, 0, 17_000, 3_000, 0], abs=2 * SEQUENCE)
    assert plan.table(10_000)[4].epochs == pytest.approx(2, abs=0.003)


def test_a_source_used_up_in_one_phase_gives_nothing_in_the_next() -> None:
    phases = [MixturePhase("50%", of(1, 1, 1))]
    plan = planned(weights=of(1, 1, 0), max_epochs={"books": 1.0}, phases=phases)
    assert [line.tokens for line in plan.table(10_000)][4] == 0


def test_the_largest_run_that_caps_allow_is_allowed() -> None:
    plan = planned(max_tokens=84_000, weights=of(1, 1, 1), max_epochs=1.0)
    assert [line.tokens for line in plan.table(21_000)] == pytest.approx([64_000, 4_000, 16_000], abs=2 * SEQUENCE)


@given(
    weights=st.lists(st.floats(0.01, 10), min_size=2, max_size=5),
    limits=st.lists(st.floats(1, 4000), min_size=5, max_size=5),
    num_rows=st.integers(1, 6000),
)
@settings(max_examples=200, deadline=None)
def test_capping_is_water_filling(weights: list[float], limits: list[float], num_rows: int) -> None:
    limits = limits[: len(weights)]
    asked = [weight / sum(weights) for weight in weights]
    if sum(limits) < num_rows - 0.5:
        with pytest.raises(ValueError, match="Raise max_epochs, shorten the run, or add text"):
            cap_shares(asked, limits, num_rows, "phase 1")
        return
    found = cap_shares(asked, limits, num_rows, "phase 1")
    assert sum(found) == pytest.approx(1, abs=0.5 / num_rows)
    levels = [share / want for share, want in zip(found, asked, strict=True)]
    for share, limit, level in zip(found, limits, levels, strict=True):
        assert share * num_rows <= limit * (1 + 1e-9)
        assert share * num_rows == pytest.approx(limit) or level == pytest.approx(max(levels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"web": 1.0}}, r"data.weights names \['web'\], there are .* Give every source a weight"),
        ({"weights": of(1, 1, 1) | {"mail": 1.0}}, r"data.weights names .*'mail'"),
        ({"weights": of(0, 0, 0)}, "must not be negative, infinite or all 0"),
        ({"temperature": 0.0}, "data.temperature=0.0: must be above 0"),
        ({"max_epochs": 0.0}, "data.max_epochs=0.0: must be above 0"),
        ({"max_epochs": {"mail": 2.0}}, "data.max_epochs names 'mail'"),
        ({"max_epochs": 2.0, "max_tokens": None}, "a run without max_tokens. Set data.max_tokens"),
        ({"max_epochs": 0.4}, r"leaves 33,600 tokens for phase 1, which takes 40,000. Raise max_epochs"),
        ({"phases": [MixturePhase("90%")], "max_tokens": None}, r"data.phases\[0\].start=90% is a share of a run"),
        ({"phases": [MixturePhase("100%")]}, "not before the end of the run, 40,000 tokens"),
        ({"phases": [MixturePhase("50%"), MixturePhase("40%")]}, "each must begin after the one before it"),
        ({"phases": [MixturePhase("50%", {"web": 1.0})]}, r"data.phases\[0\].weights names"),
        ({"phases": [MixturePhase("half")]}, "'half' is not a duration"),
    ],
    ids=str,
)
def test_what_cannot_be_mixed_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planned(**options)


@pytest.mark.parametrize(("start", "row"), [("25%", 2500), ("10k tokens", 2500), (30, 120), ("30 steps", 120)])
def test_a_phase_begins_where_it_says(start: str | int, row: int) -> None:
    assert planned(phases=[MixturePhase(start)]).mixture.later[0].first_row == row
