"""What is wrong with a run of reinforcement learning, in words."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Symptom:
    """A pattern in the metrics of a rollout, and what it means.

    Attributes:
        name: Short.
        is_present: Given the metrics of this rollout and of the run's first one.
        meaning: What it comes from and what to do; filled in with the rollout's metrics.
    """

    name: str
    is_present: Callable[[Metrics, Metrics], bool]
    meaning: str


def _get(metrics: Metrics, name: str, default: float = 0.0) -> float:
    return metrics.get(name, default)


SYMPTOMS = (
    Symptom(
        "ratio error",
        lambda now, _: _get(now, "update/first_ratio_error") > 1e-3,
        "the policy's own probabilities changed before the first step (by {update/first_ratio_error:.1e}): dropout, "
        "another precision, or another temperature in scoring than in sampling",
    ),
    Symptom(
        "sampler error",
        lambda now, _: _get(now, "rollout/sampler_error") > 0.3,  # bfloat16 alone makes 0.1
        "the sampler's log-probabilities differ from the scorer's by {rollout/sampler_error:.2f} nats: responses come "
        "from another distribution than the one that is trained (low precision, or stale weights)",
    ),
    Symptom(
        "negative KL",
        lambda now, _: _get(now, "kl/reference") < -0.05,
        "KL to the reference is {kl/reference:.3f}, which no distribution can have: the responses are not samples of "
        "the scored policy, or too few to average out the noise of the estimator",
    ),
    Symptom(
        "critic worse than a constant",
        lambda now, _: _get(now, "rollout/number") >= 10 and _get(now, "value/explained_variance") < -0.2,
        "explained variance is {value/explained_variance:.2f}: the critic's learning rate is too high, value clipping "
        "too narrow, or the rewards too small beside their noise",
    ),
    Symptom(
        "entropy collapse",
        lambda now, first: (
            _get(first, "rollout/entropy") > 0.1 and _get(now, "rollout/entropy") < 0.1 * _get(first, "rollout/entropy")
        ),
        "entropy fell to {rollout/entropy:.3f} nats a token, a tenth of what it was: raise kl.coef or entropy_coef, or "
        "lower the learning rate",
    ),
    Symptom(
        "length drift",
        lambda now, first: (
            _get(first, "rollout/length") > 0
            and not 0.5 <= _get(now, "rollout/length") / _get(first, "rollout/length") <= 2.0
        ),
        "responses have {rollout/length:.0f} tokens, half or double of what they had: the reward pays for length, "
        "not for quality",
    ),
    Symptom(
        "equal rewards",
        lambda now, _: "reward/std" in now and now["reward/std"] < 1e-6,
        "all responses have one reward, {reward/total:.3f}: there is nothing to prefer. Look at samples and the reward "
        "function",
    ),
    Symptom(
        "policy leaps",
        lambda now, _: _get(now, "update/kl_from_sampling") > 0.2 or _get(now, "update/clip_fraction") > 0.5,
        "an update moved the policy by {update/kl_from_sampling:.2f} nats a token, {update/clip_fraction:.0%} of "
        "ratios clipped: lower the learning rate or num_epochs, or set update.target_kl",
    ),
    Symptom(
        "nothing ends",
        lambda now, _: _get(now, "rollout/finished_share", 1.0) < 0.02 and _get(now, "rollout/length") > 1,
        "{rollout/finished_share:.0%} of the responses end of their own accord: is the end-of-turn token trained, and "
        "max_new_tokens large enough?",
    ),
)


def diagnose(metrics: Metrics, first: Metrics) -> list[str]:
    """One line for each symptom, most fundamental first; none when all is well.

    Args:
        metrics: Of a rollout, as `PolicyOptimization` logs them.
        first: Of the run's first rollout.
    """
    found = [symptom for symptom in SYMPTOMS if symptom.is_present(metrics, first)]
    return [f"{symptom.name}: {_fill(symptom.meaning, metrics)}" for symptom in found]


def _fill(meaning: str, metrics: Metrics) -> str:
    return meaning.format_map(_WithDefault(metrics))


class _WithDefault(dict[str, float]):
    def __missing__(self, key: str) -> float:
        return float("nan")
