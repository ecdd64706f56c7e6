"""What is done to scores, in order: penalty, normalisation, clipping."""

import pytest
import torch
from torch import Tensor

from lmstack.rl.reward_shaping import RewardShaper, RewardShaping

SCORES = torch.tensor([1.0, 2.0, 6.0, -3.0])
FINISHED = torch.tensor([True, False, True, False])


def test_by_default_nothing_is_done() -> None:
    assert torch.equal(RewardShaper(RewardShaping())(SCORES, FINISHED), SCORES)


def test_a_response_that_was_cut_pays() -> None:
    shaper = RewardShaper(RewardShaping(missing_eos_penalty=2.5))
    assert shaper(SCORES, FINISHED).tolist() == [1.0, -0.5, 6.0, -5.5]


def test_scores_are_clipped_after_the_penalty() -> None:
    shaper = RewardShaper(RewardShaping(missing_eos_penalty=2.5, clip=1.5))
    assert shaper(SCORES, FINISHED).tolist() == [1.0, -0.5, 1.5, -1.5]


def test_normalisation_is_by_all_scores_so_far() -> None:
    shaper = RewardShaper(RewardShaping(missing_eos_penalty=1.0, normalize=True))
    seen: list[Tensor] = []
    for scores in (SCORES, 3.0 * SCORES, torch.tensor([5.0, 5.0, 5.0, 5.0])):
        seen.append(torch.where(FINISHED, scores, scores - 1.0))
        everything = torch.cat(seen)
        expected = (seen[-1] - everything.mean()) / everything.std(unbiased=False)
        torch.testing.assert_close(shaper(scores, FINISHED), expected, rtol=0, atol=1e-5)


def test_clipping_is_in_units_of_the_normalised_score() -> None:
    shaped = RewardShaper(RewardShaping(normalize=True, clip=1.0))(SCORES, FINISHED)
    mean, std = SCORES.mean(), SCORES.std(unbiased=False)
    torch.testing.assert_close(shaped, ((SCORES - mean) / std).clamp(-1, 1), rtol=0, atol=1e-6)
    assert shaped.max() == 1.0


def test_equal_scores_normalise_to_zero() -> None:
    shaped = RewardShaper(RewardShaping(normalize=True))(torch.full((4,), 0.3), FINISHED)
    assert shaped.tolist() == pytest.approx([0.0] * 4, abs=1e-3)


def test_its_state_goes_on() -> None:
    config = RewardShaping(normalize=True)
    whole, first, second = (RewardShaper(config) for _ in range(3))
    for shaper in (whole, first):
        shaper(SCORES, FINISHED)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(SCORES + 1.0, FINISHED), whole(SCORES + 1.0, FINISHED))
    assert not torch.equal(RewardShaper(config)(SCORES + 1.0, FINISHED), whole(SCORES + 1.0, FINISHED))


def test_two_ranks_normalise_as_one() -> None:
    """Each rank adds what the other one has to its own sums."""
    halves = SCORES[:1], SCORES[1:]

    def with_the_other(other: Tensor) -> RewardShaper:
        sums = torch.tensor([len(other), other.sum(), other.square().sum()], dtype=torch.float64)
        return RewardShaper(RewardShaping(normalize=True), lambda own: own + sums)

    parts = [
        with_the_other(halves[1 - rank])(halves[rank], torch.ones(len(halves[rank]), dtype=torch.bool))
        for rank in range(2)
    ]
    expected = RewardShaper(RewardShaping(normalize=True))(SCORES, FINISHED)
    torch.testing.assert_close(torch.cat(parts), expected, rtol=0, atol=1e-6)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="missing_eos_penalty=-1"):
        RewardShaping(missing_eos_penalty=-1.0)
    with pytest.raises(ValueError, match=r"reward_shaping\.clip=0"):
        RewardShaping(clip=0.0)
