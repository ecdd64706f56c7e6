from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmstack.optim.durations import Duration, parse_duration, to_steps


def no_tokens(tokens: int) -> int:
    raise AssertionError("not a duration in tokens")


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        (100, 100, "steps"),
        (0, 0, "steps"),
        ("100", 100, "steps"),
        ("100 steps", 100, "steps"),
        ("1 step", 1, "steps"),
        ("10k steps", 10_000, "steps"),
        ("1e3 steps", 1000, "steps"),
        ("2M tokens", 2_000_000, "tokens"),
        ("2m tokens", 2_000_000, "tokens"),
        ("2.3M tokens", 2_300_000, "tokens"),
        ("1.5B tokens", 1_500_000_000, "tokens"),
        ("1T tokens", 10**12, "tokens"),
        ("300_000 tokens", 300_000, "tokens"),
        ("300,000tokens", 300_000, "tokens"),
        ("1 token", 1, "tokens"),
        ("5%", Decimal("0.05"), "fraction"),
        (" 0.5 % ", Decimal("0.005"), "fraction"),
        ("100%", Decimal(1), "fraction"),
    ],
)
def test_what_people_write_is_understood(text, value, unit):
    assert parse_duration(text) == Duration(value, unit)


@pytest.mark.parametrize(
    "text",
    ["", "soon", "5 apples", "-3", -3, "-2 tokens", "5 % tokens", True, "0.05", "1.5 steps", "101%", "5k%"],
)
def test_anything_else_is_refused_with_examples(text):
    with pytest.raises(ValueError, match=r"(?s)" + r".*Write 100 or '100 steps', '2M tokens', or '5%'") as error:
        parse_duration(text)
    assert repr(text) in str(error.value)


@given(st.integers(0, 10**12), st.sampled_from(["steps", "tokens"]))
def test_a_printed_duration_reads_back(value, unit):
    duration = Duration(value, unit)
    assert parse_duration(str(duration)) == duration


@given(st.integers(0, 10_000))
def test_a_printed_share_reads_back(hundredths):
    duration = Duration(Decimal(hundredths) / 10_000, "fraction")
    assert parse_duration(str(duration)) == duration


def test_steps_are_steps_whatever_the_run():
    assert to_steps("100 steps", None, no_tokens) == 100
    assert to_steps(Duration(7, "steps"), 3, no_tokens) == 7


def test_tokens_are_converted_by_who_knows_the_batches():
    assert to_steps("2k tokens", None, lambda tokens: tokens // 500) == 4


@pytest.mark.parametrize(
    ("share", "total", "steps"), [("5%", 1000, 50), ("5%", 10, 1), ("4.9%", 10, 0), ("100%", 7, 7), ("0.1%", 1000, 1)]
)
def test_a_share_is_rounded_to_the_nearest_step(share, total, steps):
    assert to_steps(share, total, no_tokens) == steps


def test_a_share_of_a_run_without_end_is_refused():
    with pytest.raises(ValueError, match=r"'5%' is a share of a run that has no end. Set data.max_tokens"):
        to_steps("5%", None, no_tokens)
