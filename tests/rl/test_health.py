"""Every symptom is found where it is, and a healthy run is left in peace."""

import pytest

from lmstack.rl.health import SYMPTOMS, diagnose

HEALTHY = {
    "update/first_ratio_error": 1e-7, "rollout/sampler_error": 1e-6, "kl/reference": 0.5, "rollout/number": 20.0,
    "value/explained_variance": 0.4, "rollout/entropy": 2.0, "rollout/length": 20.0, "reward/std": 0.3,
    "reward/total": 0.1, "update/kl_from_sampling": 0.01, "update/clip_fraction": 0.1, "rollout/finished_share": 0.9,
}  # fmt: skip
ILL = {
    "ratio error": {"update/first_ratio_error": 0.02},
    "sampler error": {"rollout/sampler_error": 0.5},
    "negative KL": {"kl/reference": -0.4},
    "critic worse than a constant": {"value/explained_variance": -0.9},
    "entropy collapse": {"rollout/entropy": 0.1},
    "length drift": {"rollout/length": 50.0},
    "equal rewards": {"reward/std": 0.0},
    "policy leaps": {"update/clip_fraction": 0.7},
    "nothing ends": {"rollout/finished_share": 0.0},
}


def test_a_healthy_run_is_left_in_peace() -> None:
    assert diagnose(HEALTHY, HEALTHY) == []


def test_every_symptom_has_its_case() -> None:
    assert {symptom.name for symptom in SYMPTOMS} == set(ILL)


@pytest.mark.parametrize("name", ILL)
def test_each_symptom_is_named_alone_and_in_whole_words(name: str) -> None:
    lines = diagnose(HEALTHY | ILL[name], HEALTHY)
    assert [line.partition(":")[0] for line in lines] == [name]
    assert "nan" not in lines[0]
    assert "{" not in lines[0]


def test_a_young_critic_may_be_bad() -> None:
    assert diagnose(HEALTHY | {"value/explained_variance": -3.0, "rollout/number": 2.0}, HEALTHY) == []
