"""Rollouts: which slot is which token's, and what an output depends on (traps 34, 35, 36, 38)."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from lmstack.data.batch import IGNORE_INDEX
from lmstack.generation import GenerationEngine
from lmstack.models.heads import ScoringTransformer
from lmstack.models.likelihood import response_log_probs
from lmstack.rl.rewards import Sample
from lmstack.rl.rollout import (
    Rollout,
    SamplingConfig,
    generate_samples,
    state_values,
    token_rewards,
)
from tiny_transformer import transformer

X = IGNORE_INDEX
SAMPLES = [
    Sample("", "", [5, 6, 7], [8, 9], "stop_id"),
    Sample("", "", [5], [6, 7, 8, 2], "length"),
    Sample("", "", [3, 4], [2], "stop_id"),
]


def rollout(samples: list[Sample] = SAMPLES) -> Rollout:
    return Rollout.of(samples, torch.arange(1.0, len(samples) + 1), torch.device("cpu"))


def test_samples_become_rows_by_hand() -> None:
    rows = rollout()
    assert rows.input_ids.tolist() == [[5, 6, 7, 8, 9], [5, 6, 7, 8, 2], [3, 4, 2, 0, 0]]
    assert rows.labels.tolist() == [[X, X, 8, 9, X], [6, 7, 8, 2, X], [X, 2, X, X, X]]
    assert rows.lengths.tolist() == [5, 5, 3]
    assert rows.last_slot.tolist() == [3, 3, 1]
    assert rows.response_mask.sum(1).tolist() == [2, 4, 1]
    assert rows.scores.tolist() == [1.0, 2.0, 3.0]
    assert rows.row_weights.tolist() == [1.0, 1.0, 1.0]
    assert len(rows) == 3


def test_the_score_is_the_reward_of_the_last_token_and_of_no_padding() -> None:
    """Trap 36: a literal tensor."""
    rows = rollout()
    kl = torch.tensor([[9.0, 9, 1, 2, 9], [1, 0, -1, 2, 9], [9, 3, 9, 9, 9]])
    rewards = token_rewards(rows.scores, kl, rows.last_slot, rows.response_mask, kl_coef=0.5)
    expected = [[0, 0, -0.5, 0.0, 0], [-0.5, 0, 0.5, 1.0, 0], [0, 1.5, 0, 0, 0]]
    assert rewards.tolist() == expected
    poisoned = torch.where(rows.response_mask, kl, torch.nan)
    assert token_rewards(rows.scores, poisoned, rows.last_slot, rows.response_mask, kl_coef=0.5).tolist() == expected


def test_a_row_without_tokens_gets_no_reward() -> None:
    empty = rollout().select(torch.tensor([], dtype=torch.int64))
    rewards = token_rewards(empty.scores, empty.values, empty.last_slot, empty.response_mask, kl_coef=0.5)
    assert not rewards.any()


def test_rows_can_be_selected_and_are_cut_to_the_longest() -> None:
    rows = rollout()
    rows.values = torch.arange(15.0).view(3, 5)
    some = rows.select(torch.tensor([2, 0]))
    assert some.input_ids.tolist() == [[3, 4, 2, 0, 0], [5, 6, 7, 8, 9]]
    assert some.scores.tolist() == [3.0, 1.0]
    short = rows.select(torch.tensor([2]))
    assert short.input_ids.tolist() == [[3, 4, 2]]
    assert short.labels.tolist() == [[X, 2, X]]
    assert short.values.tolist() == [[10.0, 11.0, 12.0]]
    assert all(len(getattr(short, field.name)) == 1 for field in fields(short))


def test_no_rows_are_one_row_that_does_not_count() -> None:
    none = rollout().select(torch.tensor([], dtype=torch.int64))
    assert len(none) == 1
    assert not none.response_mask.any()
    assert none.lengths.tolist() == none.row_weights.tolist() == none.last_slot.tolist() == [0]
    assert rollout().row_weights.tolist() == [1.0, 1.0, 1.0]
    of_none = rollout([]).select(torch.tensor([], dtype=torch.int64))  # a rank whose last rollout has no prompt
    assert len(of_none) == 1
    assert not of_none.response_mask.any()


def ragged(prompt: int = 4, response: int = 5) -> tuple[list[Sample], list[Sample]]:
    """A sample alone, and between one that is longer by 5 and one that is shorter."""
    ids = torch.randint(31, (40,), generator=torch.Generator().manual_seed(3)).tolist()
    own = Sample("", "", ids[:prompt], ids[10 : 10 + response], "length")
    longer = Sample("", "", ids[20 : 22 + prompt], ids[3 : 6 + response], "length")
    return [own], [longer, own, Sample("", "", ids[:1], ids[1:2], "stop_id")]


def scored(samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Log-probabilities and values of every row."""
    model, rows = transformer(), rollout(samples)
    critic = ScoringTransformer(transformer(seed=5))
    with torch.no_grad():
        log_probs, _ = response_log_probs(model, rows.input_ids, rows.labels, temperature=0.7, chunk_size=3)
        return log_probs, state_values(critic, rows.input_ids, rows.labels)


def test_a_row_alone_and_in_a_ragged_batch_are_the_same() -> None:
    """Trap 35. float32: the order of summation differs with the shape."""
    alone, batch = ragged()
    for one, many in zip(scored(alone), scored(batch), strict=True):
        width = one.shape[1]
        assert many.shape[1] == width + 5
        torch.testing.assert_close(many[1, :width], one[0], rtol=0, atol=1e-5)
        assert not many[1, width:].any()
        assert one[0].count_nonzero() == 5


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.5])
def test_log_probs_are_those_of_all_logits(temperature: float) -> None:
    model, rows = transformer(head_bias=True, tied_embeddings=False), rollout(ragged()[1])
    with torch.no_grad():
        log_probs, hidden = response_log_probs(
            model, rows.input_ids, rows.labels, temperature=temperature, chunk_size=4
        )
        everything = (model.logits(model(rows.input_ids)).double() / temperature).log_softmax(-1)
    for row in range(len(rows)):
        for t in range(rows.labels.shape[1]):
            label = int(rows.labels[row, t])
            expected = 0.0 if label == X else everything[row, t, label].item()
            assert log_probs[row, t].item() == pytest.approx(expected, abs=1e-5)
    assert hidden.shape == (*rows.labels.shape, 32)


def test_the_sampler_s_log_probs_are_the_scorer_s() -> None:
    model = transformer()
    config = SamplingConfig(max_new_tokens=6, temperature=0.8, batch_size=2)
    prompts = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10, 11]]
    samples, sampled = generate_samples(GenerationEngine(model, None), prompts, [{}] * 4, [1, 2, 3, 4], config, (9, 4))
    assert [sample.prompt_ids for sample in samples] == prompts
    rows = rollout(samples)
    with torch.no_grad():
        log_probs, _ = response_log_probs(model, rows.input_ids, rows.labels, temperature=0.8, chunk_size=4096)
    for row, sample, of_row in zip(log_probs, samples, sampled, strict=True):
        start = len(sample.prompt_ids) - 1
        assert row[start : start + len(of_row)].tolist() == pytest.approx(of_row, abs=1e-5)
        assert (sample.stop_reason == "stop_id") == (sample.response_ids[-1] in (9, 4))
        assert not {9, 4} & set(sample.response_ids[:-1])


@pytest.mark.parametrize("changed", range(1, 9))
def test_a_value_depends_on_no_later_token(changed: int) -> None:
    """Trap 38: slot t holds the value of what came before token t + 1, a function of tokens 0 to t."""
    samples, _ = ragged()
    critic = ScoringTransformer(transformer(seed=5))
    rows = rollout(samples)
    other = rows.input_ids.clone()
    other[:, changed] = (other[:, changed] + 7) % 31
    with torch.no_grad():
        before, after = (state_values(critic, ids, rows.labels) for ids in (rows.input_ids, other))
        raw = critic(rows.input_ids)
    assert torch.equal(before[:, :changed], after[:, :changed])
    if changed >= 3:  # slots 3 to 7 are the response's
        changed_slots = (before != after)[0].nonzero()[:, 0].tolist()
        assert changed_slots == [t for t in range(3, 8) if t >= changed]
    assert torch.equal(before, torch.where(rows.response_mask, raw, 0.0))


def test_no_truncation_of_the_sampled_distribution_is_offered() -> None:
    """Trap 34: nothing but the temperature, which the scorer divides by too."""
    assert {field.name for field in fields(SamplingConfig)} == {"max_new_tokens", "temperature", "batch_size"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0: must be above 0"),
        ({"max_new_tokens": 0}, "must be at least 1"),
        ({"batch_size": 0}, "must be at least 1"),
    ],
)
def test_what_cannot_work_is_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**({"max_new_tokens": 4} | arguments))
