"""Charts that are well-formed, cover their data and leave out what is not a number."""

import itertools
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmstack.reports.svg import HEIGHT, WIDTH, Series, bars, chart, histogram, number_text, ticks

NUMBERS = st.floats(-1e6, 1e6)


@given(NUMBERS, NUMBERS)
def test_ticks_cover_the_range_in_equal_steps(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    found = ticks(low, high)
    assert found[0] <= low + 1e-9
    assert found[-1] >= high - 1e-9 * max(1.0, abs(high))
    steps = [y - x for x, y in itertools.pairwise(found)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-6)
    assert 2 <= len(found) <= 12


def test_points_lie_inside_the_frame_higher_values_further_up() -> None:
    root = ET.fromstring(chart("t", [Series("a", [(0.0, 1.0), (5.0, 3.0), (10.0, 2.0)])], x_label="x", y_label="y"))
    line = root.find("polyline")
    assert line is not None
    places = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)
    assert places[1][1] < places[2][1] < places[0][1]
    assert places[0][0] < places[1][0] < places[2][0]


def test_what_is_not_finite_is_left_out() -> None:
    series = [Series("a", [(0.0, 1.0), (1.0, float("nan")), (2.0, float("inf")), (3.0, 2.0)], "dots")]
    assert chart("t", series, x_label="", y_label="").count("<circle") == 2


def test_nothing_to_show_is_said() -> None:
    assert "no data" in chart("t", [Series("a", [])], x_label="", y_label="")
    assert "no data" in bars("t", [("a", float("nan"))], y_label="")


def test_names_cannot_break_the_markup() -> None:
    ET.fromstring(bars("<b> & co", [("<script>", 1.0)], y_label='"'))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.123"), (999.6, "1,000"), (1500.0, "1,500"), (12345.0, "12.3k"), (2.5e6, "2.5M"), (3e9, "3B")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number_text(value) == text


def test_bars_of_a_histogram_stand_side_by_side_with_heights_in_proportion() -> None:
    series = [Series("a", [(0.0, 10.0), (1.0, 20.0)]), Series("b", [(1.0, 5.0)])]
    root = ET.fromstring(histogram("t", ["1k", "2k"], series, x_label="x", y_label="y"))
    found = [bar.attrib for bar in root.iter("rect") if bar.find("title") is not None]
    heights = [float(bar["height"]) for bar in found]
    assert [height / heights[0] for height in heights] == pytest.approx([1, 2, 0.5], rel=0.01)
    left, middle, right = (float(bar["x"]) for bar in found)
    assert left < middle < right
    assert right == pytest.approx(middle + float(found[0]["width"]), abs=0.2)
