"""GRPO and its relatives: the gradient of each against an independent formula."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lmstack.rl.kl_control import FixedKL
from lmstack.rl.rollout import SamplingConfig
from lmstack.rl.verifiable import FunctionReward
from lmstack.stages.grpo import LossKL, RewardKL
from ragged_rl import Moment, gradients_of, grpo, prompts, train, update

TEMPERATURE, KL_COEF, MAX_NEW_TOKENS, GROUP = 0.8, 0.5, 5, 4


def centered(scores: list[float], baseline: str) -> list[float]:
    mean, n = sum(scores) / len(scores), len(scores)
    if baseline == "leave_one_out":
        return [score - (sum(scores) - score) / (n - 1) for score in scores]
    if baseline == "centered":
        return [score - mean for score in scores]
    std = (sum((score - mean) ** 2 for score in scores) / (n - 1)) ** 0.5
    return [(score - mean) / (std + 1e-4) for score in scores]


def by_formula(moment: Any, baseline: str, aggregation: str, placement: Any, skip: bool) -> torch.Tensor:
    """Each row alone, plain sums; at the first step, where all ratios are one."""
    rows = []
    for ids, slots in moment.rows():
        of_row, of_reference = (
            torch.stack(
                [(model.logits(model(ids))[0].double() / TEMPERATURE).log_softmax(-1)[t, ids[0, t + 1]] for t in slots]
            )
            for model in (moment.policy, moment.reference)
        )
        rows.append((of_row, of_reference.detach()))
    scores = moment.rollout.scores.tolist()
    sums, num_tokens, num_rows = [], 0, 0
    for first in range(0, len(rows), GROUP):
        group, raw = rows[first : first + GROUP], scores[first : first + GROUP]
        if skip and len(set(raw)) == 1:
            continue
        if isinstance(placement, RewardKL):
            raw = [score - KL_COEF * (a - b).sum().item() for score, (a, b) in zip(raw, group, strict=True)]
        for advantage, (log_probs, ref) in zip(centered(raw, baseline), group, strict=True):
            losses = -advantage * log_probs
            if isinstance(placement, LossKL):
                ratio = log_probs - ref
                kl = ratio.square() / 2 if placement.estimator == "k2" else (-ratio).exp() - 1 + ratio
                losses = losses + KL_COEF * kl
            sums.append(losses.mean() if aggregation == "sequence_mean" else losses.sum())
            num_tokens, num_rows = num_tokens + len(losses), num_rows + 1
    divisor = {"token_mean": num_tokens, "sequence_mean": num_rows, "constant": num_rows * MAX_NEW_TOKENS}
    return torch.stack(sums).sum() / divisor[aggregation]


PUBLISHED = {
    "grpo": ("normalized", "sequence_mean", LossKL("k3"), False),
    "dr-grpo": ("centered", "constant", LossKL("k2"), False),
    "dapo": ("normalized", "token_mean", LossKL("k2"), True),
    "rloo": ("leave_one_out", "constant", RewardKL(), False),
    "rloo-tokens": ("leave_one_out", "token_mean", RewardKL(), True),
    "normalized-kl-in-reward": ("normalized", "sequence_mean", RewardKL(), True),
}


@pytest.mark.parametrize("recipe", PUBLISHED.values(), ids=PUBLISHED)
def test_the_gradient_is_that_of_the_formula(tmp_path: Path, recipe: Any) -> None:
    """Of the second rollout, when the policy has left its reference."""
    baseline, aggregation, placement, skip = recipe
    stage = grpo(
        baseline=baseline,
        aggregation=aggregation,
        kl_placement=placement,
        skip_equal_groups=skip,
        rewards={"some_equal": FunctionReward("ragged_rl.some_equal")},
        kl=FixedKL(KL_COEF),
        samples_per_prompt=GROUP,
        sampling=SamplingConfig(max_new_tokens=MAX_NEW_TOKENS, temperature=TEMPERATURE),
        update=update(micro_batch_size=5),
    )
    moment = Moment(stage, 1)
    recorder, _ = train(stage, tmp_path, rollouts=prompts(2, 4))
    even = sum(prompt[0] % 2 == 0 for prompt in prompts(2, 4)[1])
    assert 0 < even < 4
    assert recorder.rollouts[1]["rollout/equal_groups_share"] == even / 4
    assert recorder.rollouts[1]["kl/reference"] != 0.0
    expected = gradients_of(moment, by_formula(moment, baseline, aggregation, placement, skip))
    assert recorder.gradients.keys() == expected.keys()
    assert max(gradient.abs().max() for gradient in expected.values()) > 0.01
    for name, gradient in recorder.gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=3e-6, msg=name)


@pytest.mark.parametrize(("high", "loss"), [(None, -1.2), (0.25, -1.25), (0.4, -1.3)])
def test_the_upper_clip_range_takes_effect(tmp_path: Path, high: float | None, loss: float) -> None:
    stage = grpo(clip_range_high=high, kl=FixedKL(0.0))
    moment = Moment(stage, 0)
    train(stage, tmp_path)
    rollout = moment.rollout
    with torch.no_grad():
        now = stage.collector.log_probs(stage.transformer, rollout)[0]
    rollout.old_log_probs = torch.where(rollout.response_mask, now - torch.tensor(1.3).log(), 0.0)
    rollout.advantages = rollout.response_mask.float()
    sums = stage.loss_sums(rollout)
    count = rollout.response_mask.sum()
    assert (sums.objective / count).item() == pytest.approx(loss, abs=1e-5)
    assert (sums.reported["clip_fraction"] / count).item() == (0.0 if high == 0.4 else 1.0)


def test_when_every_group_is_equal_and_left_out_nothing_is_learnt(tmp_path: Path) -> None:
    def run(skip: bool) -> Any:
        stage = grpo(rewards={"equal": FunctionReward("ragged_rl.all_equal")}, skip_equal_groups=skip)
        recorder, _ = train(stage, tmp_path)
        return recorder

    assert all(not gradient.any() for gradient in run(True).gradients.values())
    assert run(True).rollouts[0]["rollout/equal_groups_share"] == 1.0


def test_one_response_to_a_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.samples_per_prompt=1: .* Use at least 2"):
        grpo(samples_per_prompt=1)
