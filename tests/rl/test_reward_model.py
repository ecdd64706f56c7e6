"""A trained reward model as a reward function."""

from pathlib import Path

import pytest
import torch

from lmstack.models.heads import ScoringTransformer, save_scorer
from lmstack.rl.reward_model import RewardModelReward
from lmstack.rl.rewards import RewardError, Sample, WeightedRewards
from lmstack.tokenization import byte_tokenizer
from tiny_transformer import transformer

LENGTHS = [(3, 4), (1, 1), (7, 2), (2, 9)]


def samples() -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    return [
        Sample("", "", *(torch.randint(1, 31, (n,), generator=generator).tolist() for n in lengths), "length")
        for lengths in LENGTHS
    ]


def saved(folder: Path) -> ScoringTransformer:
    torch.manual_seed(4)
    scorer = ScoringTransformer(transformer())
    scorer.score_head.bias.data.fill_(0.7)
    save_scorer(folder, scorer)
    return scorer


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_score_is_the_one_at_the_last_token_of_each_sample_alone(tmp_path: Path, batch_size: int) -> None:
    scorer = saved(tmp_path)
    reward = RewardModelReward(str(tmp_path), batch_size=batch_size).load(None, torch.device("cpu"))
    expected = [scorer(torch.tensor([s.prompt_ids + s.response_ids]))[0, -1].item() for s in samples()]
    assert reward(samples()) == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == 4


def test_it_is_frozen_and_evaluates(tmp_path: Path) -> None:
    saved(tmp_path)
    reward = RewardModelReward(str(tmp_path)).load(None, torch.device("cpu"))
    assert not reward.scorer.training
    assert not any(parameter.requires_grad for parameter in reward.scorer.parameters())


def test_a_sample_that_is_too_long_for_it_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    reward = RewardModelReward(str(tmp_path)).load(None, torch.device("cpu"))
    long = Sample("", "", [1] * 30, [2] * 3, "length")
    with pytest.raises(RewardError, match=r"'score' raised ValueError: .* has 33 tokens, the reward model reads 32"):
        WeightedRewards({"score": reward}, {"score": 1.0})([*samples(), long])


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    theirs, ours = byte_tokenizer(), byte_tokenizer(["<|other|>"])
    theirs.save(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"was trained with another tokenizer \(257 tokens"):
        RewardModelReward(str(tmp_path)).load(ours, torch.device("cpu"))
    assert RewardModelReward(str(tmp_path)).load(theirs, torch.device("cpu"))


def test_a_language_model_is_no_reward_model(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "score_head.safetensors").unlink()
    with pytest.raises(ValueError, match="a language model's, not a reward model's"):
        RewardModelReward(str(tmp_path)).load(None, torch.device("cpu"))
