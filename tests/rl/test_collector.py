"""Collecting a rollout: fresh weights, the scorer's probabilities, responses that depend on their prompt alone."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lmstack.data.batch import PromptBatch
from lmstack.generation import GenerationEngine
from lmstack.models import Transformer
from lmstack.rl.across_ranks import AcrossRanks
from lmstack.rl.collector import Collector
from lmstack.rl.reward_shaping import RewardShaper, RewardShaping
from lmstack.rl.rewards import Sample, WeightedRewards
from lmstack.rl.rollout import SamplingConfig
from tiny_transformer import transformer

PROMPTS = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10, 11, 12], [13], [14, 15]]
STOP = tuple(range(0, 31, 5))


def first_token(samples: Sequence[Sample]) -> list[float]:
    return [float(sample.response_ids[0]) for sample in samples]


def length(samples: Sequence[Sample]) -> list[float]:
    return [float(len(sample.response_ids)) for sample in samples]


def collector(policy: Transformer, reference: Transformer | None = None, **changes: Any) -> Collector:
    sampling = {"max_new_tokens": 6, "temperature": 1.3} | changes.pop("sampling", {})
    arguments = {
        "engine": GenerationEngine(policy, None),
        "reference": copy.deepcopy(policy) if reference is None else reference,
        "rewards": WeightedRewards({"first": first_token, "length": length}, {"first": 2.0, "length": -1.0}),
        "shaper": RewardShaper(RewardShaping(missing_eos_penalty=5.0)),
        "sampling": SamplingConfig(**sampling),
        "stop_ids": STOP,
        "micro_batch_size": 4,
        "loss_chunk_size": 5,
        "ranks": AcrossRanks(),
    }
    return Collector(**(arguments | changes))


def batch(order: Sequence[int] = range(len(PROMPTS))) -> PromptBatch:
    return PromptBatch([PROMPTS[i] for i in order], [{"n": i} for i in order], torch.tensor(list(order)) + 10)


def seed(number: int, repeat: int) -> int:
    return 1000 * number + repeat


def responses(found: Any) -> dict[int, list[int]]:
    """The response to each prompt, by the number of its first token."""
    rollout = found.rollout
    return {
        int(ids[0]): labels[mask].tolist()
        for ids, labels, mask in zip(rollout.input_ids, rollout.labels, rollout.response_mask, strict=True)
    }


def test_changed_weights_change_the_next_rollout() -> None:
    """Trap 44."""
    policy = transformer()
    collect = collector(policy)
    before = responses(collect.collect(batch(), seed))
    assert responses(collect.collect(batch(), seed)) == before
    policy.load_state_dict(transformer(seed=8).state_dict())
    after = collect.collect(batch(), seed)
    assert responses(after) != before
    assert responses(after) == responses(collector(transformer(seed=8)).collect(batch(), seed))
    assert after.metrics["rollout/sampler_error"] < 1e-4


def test_the_kl_divergence_of_a_policy_from_itself_is_zero() -> None:
    found = collector(transformer()).collect(batch(), seed)
    assert torch.equal(found.rollout.old_log_probs, found.rollout.ref_log_probs)
    assert found.metrics["kl/reference"] == 0.0
    other = collector(transformer(), transformer(seed=8)).collect(batch(), seed)
    assert abs(other.metrics["kl/reference"]) > 0.1


def test_the_sampler_s_probabilities_are_the_scorer_s() -> None:
    metrics = collector(transformer()).collect(batch(), seed, repeats=3).metrics
    assert 0 <= metrics["rollout/sampler_error"] < 1e-4
    stale = collector(transformer())
    stale.engine.generate = GenerationEngine(transformer(seed=8), None).generate  # type: ignore[method-assign]
    assert stale.collect(batch(), seed).metrics["rollout/sampler_error"] > 0.1


@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_neither_the_order_of_prompts_nor_the_batch_size_changes_a_response(batch_size: int | None) -> None:
    expected = responses(collector(transformer()).collect(batch(), seed))
    collect = collector(transformer(), sampling={"batch_size": batch_size})
    assert responses(collect.collect(batch([3, 0, 5, 2, 4, 1]), seed)) == expected
    assert responses(collect.collect(batch([3]), seed))[7] == expected[7]


def test_repeats_lie_side_by_side_and_differ() -> None:
    found = collector(transformer()).collect(batch(), seed, repeats=3)
    rows = found.rollout
    assert len(rows) == 18
    assert rows.input_ids[:, 0].tolist() == [prompt[0] for prompt in PROMPTS for _ in range(3)]
    drawn = [tuple(rows.labels[i][rows.response_mask[i]].tolist()) for i in range(18)]
    assert all(len(set(drawn[i : i + 3])) > 1 for i in range(0, 18, 3))
    single = responses(collector(transformer()).collect(batch(), seed))
    assert [list(drawn[i]) for i in range(0, 18, 3)] == [single[prompt[0]] for prompt in PROMPTS]


def test_scores_terms_and_the_table_are_of_the_same_samples() -> None:
    found = collector(transformer(), transformer(seed=8)).collect(batch(), seed)
    rows = found.rollout
    for i, row in enumerate(found.table):
        response = rows.labels[i][rows.response_mask[i]].tolist()
        is_finished = response[-1] in STOP
        total = 2.0 * response[0] - len(response)
        assert row["reward/first"] == response[0]
        assert row["length"] == row["reward/length"] == len(response)
        assert row["stop_reason"] == ("stop_id" if is_finished else "length")
        assert row["score"] == rows.scores[i].item() == total - (0.0 if is_finished else 5.0)
        ratio = (rows.old_log_probs[i] - rows.ref_log_probs[i]).sum().item()
        assert row["kl"] == pytest.approx(ratio, abs=1e-6)
    finished = [row["stop_reason"] == "stop_id" for row in found.table]
    assert 0 < sum(finished) < len(finished)
    metrics, totals = found.metrics, [2.0 * row["reward/first"] - row["length"] for row in found.table]
    mean = sum(totals) / 6
    assert metrics["reward/total"] == pytest.approx(mean)
    assert metrics["reward/std"] == pytest.approx(math.sqrt(sum((t - mean) ** 2 for t in totals) / 6))
    assert metrics["reward/shaped"] == pytest.approx(sum(row["score"] for row in found.table) / 6)
    assert metrics["kl/reference"] == pytest.approx(sum(row["kl"] for row in found.table) / 6, abs=1e-6)
    assert metrics["rollout/length"] == pytest.approx(sum(row["length"] for row in found.table) / 6)
    assert metrics["rollout/finished_share"] == pytest.approx(sum(finished) / 6)
    assert metrics["rollout/responses"] == 6
    num_tokens = sum(row["length"] for row in found.table)
    assert metrics["rollout/entropy"] == pytest.approx(-rows.old_log_probs.sum().item() / num_tokens, rel=1e-5)


def test_held_out_scores_are_neither_shaped_nor_noted() -> None:
    collect = collector(transformer(), shaper=RewardShaper(RewardShaping(missing_eos_penalty=5.0, normalize=True)))
    before = collect.shaper.state_dict()
    found = collect.collect(batch(), seed, learns=False)
    assert collect.shaper.state_dict() == before
    assert found.metrics["reward/shaped"] == found.metrics["reward/total"]
    collect.collect(batch(), seed)
    assert collect.shaper.state_dict() != before


def test_collecting_changes_neither_weights_nor_modes_nor_the_random_state() -> None:
    policy = transformer().train()
    before, state = copy.deepcopy(policy.state_dict()), torch.get_rng_state()
    found = collector(policy).collect(batch(), seed)
    assert policy.training
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not found.rollout.old_log_probs.requires_grad


def test_a_prompt_that_leaves_no_room_gets_an_empty_response() -> None:
    full = PromptBatch([[1] * 32, [2, 3]], [{}, {}], torch.tensor([0, 1]))
    collect = collector(transformer(), rewards=WeightedRewards({"length": length}, {"length": 1.0}))
    found = collect.collect(full, seed)
    assert [row["length"] for row in found.table] == [0, found.rollout.response_mask[1].sum()]
    assert found.rollout.response_mask[0].sum() == 0
    assert math.isfinite(found.metrics["rollout/sampler_error"])


def test_metrics_are_of_all_ranks() -> None:
    """Two ranks' sums by arithmetic: what one process finds for all prompts."""
    whole = collector(transformer()).collect(batch(), seed).metrics
    halves = [batch([0, 1]), batch([2, 3, 4, 5])]
    calls: list[list[torch.Tensor]] = [[], []]
    for rank in range(2):
        record = AcrossRanks(lambda x, rank=rank: calls[rank].append(x.clone()) or x)
        collector(transformer(), ranks=record).collect(halves[rank], seed)
    totals = iter([a + b for a, b in zip(*calls, strict=True)])
    found = collector(transformer(), ranks=AcrossRanks(lambda _: next(totals))).collect(halves[0], seed).metrics
    for name in set(whole) - {"rollout/sampler_error"}:
        assert found[name] == pytest.approx(whole[name], abs=1e-6), name


def test_a_rank_without_prompts_takes_part_in_what_is_reduced() -> None:
    nothing = PromptBatch([], [], torch.tensor([], dtype=torch.int64))
    found = collector(transformer()).collect(nothing, seed, learns=False)
    assert found.table == []
    assert len(found.rollout) == 0
    full = collector(transformer()).collect(batch(), seed, learns=False).metrics
    assert list(found.metrics) == list(full)  # the same names in the same order on every rank
    assert found.metrics["rollout/responses"] == 0.0
