"""Each transformation against a naive loop over one row at a time, written from its definition."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from lmstack.generation import sampling

INF = float("inf")


def random_logits(rows: int = 6, vocab: int = 17, seed: int = 0, ties: bool = False) -> Tensor:
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3
    return logits.round() if ties else logits


def ranked(row: list[float]) -> list[int]:
    """Ids from the most to the least probable, lower ids first among equals."""
    return sorted(range(len(row)), key=lambda i: (-row[i], i))


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    weights = [math.exp(x - top) for x in row]
    return [w / math.fsum(weights) for w in weights]


def kept(logits: Tensor) -> list[set[int]]:
    return [set(row.isfinite().nonzero()[:, 0].tolist()) for row in logits]


def unchanged_where_kept(before: Tensor, after: Tensor) -> bool:
    return torch.equal(torch.where(after.isfinite(), after, before), before)


@pytest.mark.parametrize("ties", [False, True])
def test_top_k_keeps_exactly_the_k_best_of_each_row(ties: bool) -> None:
    logits = random_logits(ties=ties)
    top_k = torch.tensor([1, 2, 5, 16, 17, 400])
    out = sampling.keep_top_k(logits, top_k)
    expected = [set(ranked(row)[:k]) for row, k in zip(logits.tolist(), top_k.tolist(), strict=True)]
    assert kept(out) == expected
    assert unchanged_where_kept(logits, out)


def test_top_k_of_equal_logits_keeps_the_lowest_ids() -> None:
    assert kept(sampling.keep_top_k(torch.zeros(1, 5), torch.tensor([3]))) == [{0, 1, 2}]


@pytest.mark.parametrize("ties", [False, True])
def test_top_p_keeps_the_fewest_tokens_that_reach_the_mass(ties: bool) -> None:
    logits = random_logits(ties=ties, seed=1)
    top_p = torch.tensor([1e-6, 0.3, 0.5, 0.9, 0.99, 1.0])
    expected = []
    for row, p in zip(logits.tolist(), top_p.double().tolist(), strict=True):
        probs, chosen, mass = softmax(row), set(), 0.0
        for i in ranked(row):
            if mass >= p:
                break
            chosen.add(i)
            mass += probs[i]
        expected.append(chosen)
    out = sampling.keep_top_p(logits, top_p)
    assert kept(out) == expected
    assert unchanged_where_kept(logits, out)


def test_top_p_by_hand_includes_the_token_that_crosses_the_threshold() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    assert kept(sampling.keep_top_p(logits, torch.tensor([0.5]))) == [{1, 3}]
    assert kept(sampling.keep_top_p(logits, torch.tensor([0.39]))) == [{1}]
    assert kept(sampling.keep_top_p(logits, torch.tensor([0.75]))) == [{1, 3, 2}]


def test_top_p_is_reached_by_tokens_that_have_exactly_that_probability() -> None:
    quarters = torch.zeros(1, 4)  # probabilities without rounding
    assert kept(sampling.keep_top_p(quarters, torch.tensor([0.5]))) == [{0, 1}]
    assert kept(sampling.keep_top_p(quarters, torch.tensor([0.25]))) == [{0}]


def test_top_p_one_keeps_tokens_whose_probability_rounds_to_nothing() -> None:
    logits = torch.cat([torch.zeros(1, 1), torch.full((1, 1000), -90.0)], dim=1)
    assert kept(sampling.keep_top_p(logits, torch.tensor([1.0]))) == [set(range(1001))]


@pytest.mark.parametrize("ties", [False, True])
def test_min_p_keeps_what_is_probable_enough_beside_the_best(ties: bool) -> None:
    logits = random_logits(ties=ties, seed=2)
    min_p = torch.tensor([0.0, 0.01, 0.1, 0.5, 0.9, 1.0])
    expected = []
    for row, share in zip(logits.tolist(), min_p.tolist(), strict=True):
        probs = softmax(row)
        expected.append({i for i, prob in enumerate(probs) if prob >= share * max(probs) * (1 - 1e-12)})
    out = sampling.keep_min_p(logits, min_p)
    assert kept(out) == expected
    assert unchanged_where_kept(logits, out)


def test_the_repetition_penalty_lowers_positive_and_negative_logits_of_seen_tokens_only() -> None:
    logits = torch.tensor([[2.0, -2.0, 3.0, -3.0, 0.0], [2.0, -2.0, 3.0, -3.0, 0.0]])
    seen = torch.tensor([[True, True, False, False, True], [True, True, False, False, True]])
    out = sampling.penalize_repetition(logits, seen, torch.tensor([2.0, 1.0]))
    assert out.tolist() == [[1.0, -4.0, 3.0, -3.0, 0.0], [2.0, -2.0, 3.0, -3.0, 0.0]]


def test_temperature_divides_each_row_by_its_own_and_leaves_greedy_rows() -> None:
    logits = random_logits(rows=3)
    out = sampling.apply_temperature(logits, torch.tensor([0.5, 2.0, 0.0]))
    torch.testing.assert_close(out, torch.stack([logits[0] * 2, logits[1] / 2, logits[2]]))


def test_a_truncated_row_keeps_its_truncation_under_the_next_one() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    after_k = sampling.keep_top_k(logits, torch.tensor([2]))
    # renormalized to 4/7 and 3/7: half of the mass is reached by the first token alone
    assert kept(sampling.keep_top_p(after_k, torch.tensor([0.5]))) == [{0}]
    assert kept(sampling.keep_top_p(after_k, torch.tensor([1.0]))) == [{0, 1}]


def test_rows_do_not_influence_each_other() -> None:
    logits, top_k, top_p = random_logits(), torch.arange(1, 7), torch.linspace(0.1, 1, 6)
    min_p = torch.linspace(0, 1, 6)
    for b in range(6):
        one = slice(b, b + 1)
        assert torch.equal(sampling.keep_top_k(logits, top_k)[one], sampling.keep_top_k(logits[one], top_k[one]))
        assert torch.equal(sampling.keep_top_p(logits, top_p)[one], sampling.keep_top_p(logits[one], top_p[one]))
        assert torch.equal(sampling.keep_min_p(logits, min_p)[one], sampling.keep_min_p(logits[one], min_p[one]))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    row=hnp.arrays("float32", st.integers(1, 12), elements=st.floats(-20, 20, width=32)),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_the_inverse_cdf_equals_walking_along_the_cumulated_probabilities(row, uniform: float) -> None:
    probs, walked = softmax([float(x) for x in row]), 0.0
    expected = len(probs) - 1
    for i, prob in enumerate(probs):
        walked += prob
        if uniform < walked:
            expected = i
            break
    margin = min(abs(uniform - edge) for edge in torch.tensor(probs).double().cumsum(0).tolist())
    token = int(sampling.sample_inverse_cdf(torch.from_numpy(row)[None], torch.tensor([uniform], dtype=torch.float64)))
    assert token == expected or margin < 1e-12


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_a_masked_token_is_never_drawn(uniform: float) -> None:
    for only in (0, 2, 4):
        logits = torch.full((1, 5), -INF)
        logits[0, only] = 3.0
        assert int(sampling.sample_inverse_cdf(logits, torch.tensor([uniform], dtype=torch.float64))) == only


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 1), (0.2499, 1), (0.2501, 2), (0.7499, 2), (0.7501, 4), (1 - 2**-53, 4)]
)
def test_the_inverse_cdf_by_hand(uniform: float, token: int) -> None:
    logits = torch.tensor([[0.0, 0.25, 0.5, 0.0, 0.25, 0.0]]).log()
    assert int(sampling.sample_inverse_cdf(logits, torch.tensor([uniform], dtype=torch.float64))) == token


def test_a_number_on_an_edge_belongs_to_the_token_above_it() -> None:
    quarters = torch.zeros(4, 4)  # cumulated without rounding: 0.25, 0.5, 0.75, 1
    assert sampling.sample_inverse_cdf(quarters, torch.tensor([0.0, 0.25, 0.5, 0.75]).double()).tolist() == [0, 1, 2, 3]


def test_the_frequencies_of_sampled_tokens_are_their_probabilities() -> None:
    probs = torch.tensor([0.1, 0.2, 0.3, 0.4])
    grid = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    tokens = sampling.sample_inverse_cdf(probs.log().expand(10_000, 4), grid)
    assert (tokens.bincount(minlength=4) / 10_000).tolist() == pytest.approx(probs.tolist(), abs=1e-4)


def test_greedy_rows_take_the_lowest_of_the_best_ids_whatever_the_number() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0]]).expand(3, 4)
    tokens = sampling.choose_tokens(logits, torch.zeros(3), torch.tensor([0.0, 0.5, 0.999], dtype=torch.float64))
    assert tokens.tolist() == [1, 1, 1]


def test_greedy_and_sampled_rows_mix_in_one_batch() -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    tokens = sampling.choose_tokens(logits, torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.0], dtype=torch.float64))
    assert tokens.tolist() == [1, 0]
