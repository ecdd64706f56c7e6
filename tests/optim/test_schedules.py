import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmstack.optim.durations import to_steps
from lmstack.optim.schedules import (
    ConstantSchedule,
    CosineSchedule,
    InverseSqrtSchedule,
    LinearSchedule,
    StepSchedule,
    WSDSchedule,
    lr_multiplier,
)


def table(schedule, total_steps, steps, tokens_per_step=1000):
    def steps_in(duration):
        return to_steps(duration, total_steps, lambda tokens: math.ceil(tokens / tokens_per_step))

    return [lr_multiplier(schedule, step, total_steps, steps_in) for step in steps]


EVERY_SCHEDULE = [
    ConstantSchedule(warmup=4),
    LinearSchedule(warmup=4),
    CosineSchedule(warmup=4),
    WSDSchedule(warmup=4, decay=6),
    InverseSqrtSchedule(warmup=4),
    StepSchedule(warmup=4, milestones=(8, 12)),
]


# A run of 20 steps with a warm-up of 4: at 0, w - 1, w, the middle of the decay, the last step, and after the run.
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (ConstantSchedule(warmup=4), [0.25, 1.0, 1.0, 1.0, 1.0, 1.0]),
        (LinearSchedule(warmup=4), [0.25, 1.0, 1.0, 0.5, 0.0625, 0.0]),
        (LinearSchedule(warmup=4, final=0.2), [0.25, 1.0, 1.0, 0.6, 0.25, 0.2]),
        (CosineSchedule(warmup=4, final=0.0), [0.25, 1.0, 1.0, 0.5, 0.0096073598, 0.0]),
        (CosineSchedule(warmup=4, final=0.1), [0.25, 1.0, 1.0, 0.55, 0.1086466238, 0.1]),
        (WSDSchedule(warmup=4, decay=10, shape="linear"), [0.25, 1.0, 1.0, 0.8, 0.1, 0.0]),
        (WSDSchedule(warmup=4, decay=16, shape="sqrt"), [0.25, 1.0, 1.0, 0.2928932188, 0.0317541634, 0.0]),
        (WSDSchedule(warmup=4, decay=16, shape="cosine", final=0.1), [0.25, 1.0, 1.0, 0.55, 0.1086466238, 0.1]),
        (InverseSqrtSchedule(warmup=4), [0.25, 1.0, 0.894427191, 0.5547001962, 0.4472135955, 0.4364357805]),
        (StepSchedule(warmup=4, milestones=(12, 19), factor=0.5), [0.25, 1.0, 1.0, 0.5, 0.25, 0.25]),
    ],
)
def test_the_multiplier_at_the_corners_of_a_run(schedule, expected):
    assert table(schedule, 20, [0, 3, 4, 12, 19, 20]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE)
def test_warm_up_rises_in_equal_steps_from_above_zero_to_the_peak(schedule):
    assert table(schedule, 20, range(4)) == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    "schedule",
    [ConstantSchedule(), LinearSchedule(), CosineSchedule(), WSDSchedule(), StepSchedule((5,)), InverseSqrtSchedule(0)],
)
def test_without_warm_up_the_first_step_is_at_the_peak(schedule):
    assert table(schedule, 10, [0]) == [1.0]


def test_wsd_holds_the_peak_until_its_decay_begins():
    values = table(WSDSchedule(warmup=2, decay="40%", shape="linear"), 10, range(11))
    assert values == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])


def test_wsd_with_warm_up_and_decay_that_fill_the_run_has_both_in_full():
    assert table(WSDSchedule(warmup=2, decay=2, shape="linear"), 4, range(4)) == [0.5, 1.0, 1.0, 0.5]


def test_steps_drop_at_each_milestone_and_milestones_may_be_in_any_unit():
    schedule = StepSchedule(milestones=("20%", "5k tokens", 8), factor=0.1)
    assert table(schedule, 10, range(10)) == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize("schedule", [s for s in EVERY_SCHEDULE if s.kind != "wsd"])
def test_a_run_shorter_than_its_warm_up_ends_on_the_way_up(schedule):
    assert table(schedule, 3, range(3)) == [0.25, 0.5, 0.75]


def test_wsd_refuses_a_run_that_cannot_hold_both_of_its_ends():
    with pytest.raises(ValueError, match=r"warmup=4 \(4 steps\) and schedule.decay='70%' \(7 steps\).*run of 10 steps"):
        table(WSDSchedule(warmup=4, decay="70%"), 10, [0])


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule(), WSDSchedule(decay=5)])
def test_a_decay_to_the_end_of_a_run_without_end_is_refused(schedule):
    with pytest.raises(ValueError, match=f"kind={schedule.kind} decays until the end of a run that has none"):
        table(schedule, None, [10])


@pytest.mark.parametrize("schedule", [ConstantSchedule(3), InverseSqrtSchedule(3), StepSchedule((5,), 3)])
def test_schedules_that_do_not_look_ahead_need_no_end(schedule):
    assert table(schedule, None, range(100)) == table(schedule, 100, range(100))


@pytest.mark.parametrize("build", [ConstantSchedule, LinearSchedule, CosineSchedule, WSDSchedule, InverseSqrtSchedule])
def test_a_warm_up_that_is_no_duration_is_refused_when_the_config_is_built(build):
    with pytest.raises(ValueError, match="'soon' is not a duration"):
        build(warmup="soon")


def test_a_decay_or_milestone_that_is_no_duration_is_refused_when_the_config_is_built():
    with pytest.raises(ValueError, match="'late' is not a duration"):
        WSDSchedule(decay="late")
    with pytest.raises(ValueError, match="'late' is not a duration"):
        StepSchedule(milestones=(5, "late"))


@pytest.mark.parametrize("final", [-0.1, 1.5])
def test_a_final_multiplier_outside_zero_and_one_is_refused(final):
    for build in (LinearSchedule, CosineSchedule, WSDSchedule):
        with pytest.raises(ValueError, match=rf"schedule.final={final}: must be in \[0, 1\]"):
            build(final=final)


# Arguments, not schedules: with shape checks on, building one draws from `random`, which strategies must not.
arguments = st.one_of(
    st.tuples(st.just(LinearSchedule), st.fixed_dictionaries({"warmup": st.integers(0, 30), "final": st.floats(0, 1)})),
    st.tuples(st.just(CosineSchedule), st.fixed_dictionaries({"warmup": st.integers(0, 30), "final": st.floats(0, 1)})),
    st.tuples(
        st.just(WSDSchedule),
        st.fixed_dictionaries(
            {
                "warmup": st.integers(0, 10),
                "decay": st.integers(0, 10),
                "shape": st.sampled_from(["linear", "sqrt", "cosine"]),
                "final": st.floats(0, 1),
            }
        ),
    ),
    st.tuples(st.just(InverseSqrtSchedule), st.fixed_dictionaries({"warmup": st.integers(0, 30)})),
    st.tuples(
        st.just(StepSchedule),
        st.fixed_dictionaries(
            {"milestones": st.tuples(st.integers(0, 60)), "warmup": st.integers(0, 30), "factor": st.floats(0, 1)}
        ),
    ),
)


@settings(max_examples=40, deadline=None)
@given(arguments, st.integers(20, 60))
def test_every_schedule_rises_to_at_most_one_then_falls_and_is_never_zero_before_its_end(kind_and_fields, total_steps):
    kind, fields = kind_and_fields
    schedule = kind(**fields)
    values = table(schedule, total_steps, range(total_steps))
    warmup = min(schedule.warmup, total_steps)
    assert all(0.0 <= value <= 1.0 for value in values)
    assert values[:warmup] == sorted(values[:warmup])
    assert values[warmup:] == sorted(values[warmup:], reverse=True)
    if kind is not StepSchedule:
        assert all(value > 0.0 for value in values)
    if warmup < total_steps:
        beyond = table(schedule, total_steps, [total_steps, total_steps + 7])
        assert beyond[0] >= beyond[1] >= 0.0


@pytest.mark.parametrize("kind", [LinearSchedule, CosineSchedule])
def test_in_tokens_the_schedule_does_not_depend_on_the_batch_size(kind):
    schedule = kind(warmup="40k tokens")
    small = table(schedule, 400, range(400), tokens_per_step=1000)
    large = table(schedule, 100, range(100), tokens_per_step=4000)
    # The decay begins at the same token and has made the same progress at the same token.
    assert large[10:] == pytest.approx(small[40::4])
    assert large[9] == small[39] == 1.0


def test_a_torch_scheduler_that_steps_once_per_optimizer_step_reads_the_table():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    schedule = CosineSchedule(warmup=3, final=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: table(schedule, 12, [step])[0])
    used = []
    for _ in range(12):
        for _ in range(4):  # micro-batches
            (parameter.sum() / 4).backward()
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    assert used == [2.0 * value for value in table(schedule, 12, range(12))]
