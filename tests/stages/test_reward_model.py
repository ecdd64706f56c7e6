"""Reward modelling: K-wise loss, calibration against known scores, centring, validation."""

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F

from lmstack.callbacks import Checkpointing, Throughput
from lmstack.data.batch import PreferenceBatch
from lmstack.data.preferences import PairConfig
from lmstack.models import load_transformer
from lmstack.models.checkpoint_folder import newest_valid_checkpoint
from lmstack.models.heads import load_scorer
from lmstack.nn.lora import LoRAConfig
from lmstack.stages.reward_model import RewardModel
from tiny_preferences import Ranking, preferences, random_rankings, stage_arguments, tiny_weights
from tiny_run import StepData, tiny_config, tiny_trainer

RANKINGS = [*random_rankings(3, num_answers=4), *random_rankings(3, num_answers=2, seed=1)]


def reward_model(seed: int = 0, **arguments: Any) -> RewardModel:
    torch.manual_seed(seed)
    return RewardModel(**stage_arguments(**({"transformer": tiny_config()} | arguments)))


class Gradients(L.Callback):
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self.values = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}


def gradients_of(folder: Path, split: list[list[int]], **arguments: Any) -> dict[str, torch.Tensor]:
    gradients = Gradients()
    step = [preferences([RANKINGS[i] for i in part]) for part in split]
    tiny_trainer(folder, [gradients], precision="64-true").fit(reward_model(**arguments), StepData([step]))
    return gradients.values


def test_a_ranking_is_its_separate_pairs(tmp_path: Path) -> None:
    """Each pair forwarded on its own, both answers anew: InstructGPT's eq. 1 as it is written."""
    stage = reward_model().double()
    losses = []
    for prompt, ranked in RANKINGS:
        pairs = [
            -F.logsigmoid(
                stage.scorer(torch.tensor([prompt + a]))[0, -1] - stage.scorer(torch.tensor([prompt + b]))[0, -1]
            )
            for a, b in combinations(ranked, 2)
        ]
        losses.append(torch.stack(pairs).mean())
    loss = torch.stack(losses).mean()
    loss.backward()
    expected = {name: p.grad for name, p in stage.named_parameters()}
    gradients = gradients_of(tmp_path, [[0, 1, 2, 3, 4, 5]])
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-6, msg=name)
    sums = stage.loss_sums(preferences(RANKINGS))
    assert sums.objective.item() / 6 == pytest.approx(loss.item(), abs=1e-6)


def test_ties_are_learnt_from_where_a_threshold_says_what_they_are() -> None:
    stage, batch = reward_model(tie_threshold=0.5), preferences(RANKINGS)
    batch.is_tie[0] = True
    scores = torch.linspace(-1, 1, len(batch.lengths))
    sums = stage._sums(batch, scores)
    differences = (scores[batch.better] - scores[batch.worse]).tolist()
    expected = [-math.log(1 / (1 + math.exp(0.5 - d))) for d in differences]
    d = differences[0]
    expected[0] = -math.log(1 - 1 / (1 + math.exp(0.5 - d)) - 1 / (1 + math.exp(0.5 + d)))
    assert sums.objective.item() == pytest.approx(
        sum(w * loss for w, loss in zip(batch.pair_weight.tolist(), expected, strict=True)), abs=1e-5
    )


@pytest.mark.parametrize(("keep_ties", "tie_threshold"), [(True, None), (False, 0.5)])
def test_ties_in_the_data_or_in_the_model_alone_are_refused(
    tmp_path: Path, keep_ties: bool, tie_threshold: float | None
) -> None:
    data = StepData([[preferences(RANKINGS)]])
    data.pair_config = PairConfig(keep_ties)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="set both, to learn from ties, or neither"):
        tiny_trainer(tmp_path).fit(reward_model(tie_threshold=tie_threshold), data)


def test_each_answer_is_forwarded_once() -> None:
    stage, batch = reward_model(), preferences(RANKINGS)
    seen: list[int] = []
    stage.transformer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[0]))
    stage.loss_sums(batch)
    assert seen == [3 * 4 + 3 * 2]
    assert len(batch.better) == 3 * 6 + 3 * 1


@pytest.mark.parametrize("split", [[[0], [1], [2], [3], [4], [5]], [[5, 4, 3], [0, 1, 2]], [[0, 3], [1, 4], [2, 5]]])
@pytest.mark.parametrize("centering_coef", [0.0, 0.1])
def test_gradients_do_not_depend_on_the_split_into_micro_batches(
    tmp_path: Path, split: list[list[int]], centering_coef: float
) -> None:
    whole = gradients_of(tmp_path, [[0, 1, 2, 3, 4, 5]], centering_coef=centering_coef)
    for name, gradient in gradients_of(tmp_path, split, centering_coef=centering_coef).items():
        torch.testing.assert_close(gradient, whole[name], rtol=0, atol=1e-10, msg=name)


def test_padding_changes_nothing() -> None:
    stage = reward_model()
    narrow, wide = preferences(RANKINGS), preferences(RANKINGS, width=16)
    wide.input_ids[wide.position_ids >= wide.lengths[:, None]] = 3
    torch.testing.assert_close(stage.loss_sums(narrow).objective, stage.loss_sums(wide).objective, rtol=0, atol=1e-5)


def test_margins_and_centering_are_in_the_loss() -> None:
    batch = preferences(RANKINGS[:1], margin=0.5)
    scores = reward_model().scorer.scores(batch.input_ids, batch.lengths)
    difference = scores[batch.better] - scores[batch.worse]
    total = scores[batch.better] + scores[batch.worse]
    with_margin = reward_model(margin_coef=2.0, centering_coef=0.3).loss_sums(batch)
    expected = -F.logsigmoid(difference - 1.0).mean() + 0.3 * total.square().mean()
    torch.testing.assert_close(with_margin.objective, expected, rtol=0, atol=1e-6)
    without = reward_model(margin_coef=0.0).loss_sums(batch)
    torch.testing.assert_close(without.objective, -F.logsigmoid(difference).mean(), rtol=0, atol=1e-6)


NUM_PROMPTS, NUM_ANSWERS = 4, 6


def compared(winners: torch.Tensor, losers: torch.Tensor) -> PreferenceBatch:
    """Every prompt with every answer once, a token each, and the comparisons that were drawn."""
    batch = preferences([([p], [[10 + a] for a in range(NUM_ANSWERS)]) for p in range(NUM_PROMPTS)])
    batch.better, batch.worse = winners, losers
    batch.pair_weight = torch.full((len(winners),), NUM_PROMPTS / len(winners))
    batch.is_tie = torch.zeros(len(winners), dtype=torch.bool)
    batch.margin = torch.zeros(len(winners))
    return batch


def test_scores_learnt_from_bradley_terry_labels_are_as_good_as_the_true_ones(tmp_path: Path) -> None:
    """Cross-entropy against the true probabilities within 0.015 nats of the least possible."""
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(NUM_PROMPTS, NUM_ANSWERS, generator=generator).flatten() * 1.5
    same = [
        (p * NUM_ANSWERS + a, p * NUM_ANSWERS + b)
        for p in range(NUM_PROMPTS)
        for a, b in combinations(range(NUM_ANSWERS), 2)
    ]
    first, second = torch.tensor(same).T
    probability = torch.sigmoid(true[first] - true[second])

    def draw() -> PreferenceBatch:
        wins = torch.rand((8, len(first)), generator=generator) < probability
        firsts, seconds = first.expand_as(wins), second.expand_as(wins)
        return compared(torch.where(wins, firsts, seconds).flatten(), torch.where(wins, seconds, firsts).flatten())

    stage = reward_model()
    tiny_trainer(tmp_path).fit(stage, StepData([[draw()] for _ in range(150)]))
    batch = compared(first, second)
    with torch.no_grad():
        scores = stage.scorer.scores(batch.input_ids, batch.lengths)
    logits = scores[first] - scores[second]
    cross_entropy = F.binary_cross_entropy_with_logits(logits, probability).item()
    bayes = F.binary_cross_entropy(probability, probability).item()
    assert bayes < 0.6
    assert 0 <= cross_entropy - bayes < 0.015


class Demonstrated(StepData):
    def demonstration_batches(self) -> list[PreferenceBatch]:
        batches = [preferences(random_rankings(3, seed=5)), preferences(random_rankings(2, seed=6))]
        for batch in batches:
            batch.demonstration[::2] = True
        return batches


def test_at_the_end_demonstrations_score_zero_on_average_and_the_checkpoint_knows(tmp_path: Path) -> None:
    data = Demonstrated([[preferences(RANKINGS)]] * 3, [preferences(RANKINGS)])
    callbacks = [Checkpointing(every_n_steps=1, keep_last=9, keep_best=1), Throughput(peak=1.0)]
    tiny_trainer(tmp_path, callbacks, val_check_interval=1).fit(reward_model(), data)
    scorer = load_scorer(tmp_path)
    scores = torch.cat([scorer.scores(b.input_ids, b.lengths)[b.demonstration] for b in data.demonstration_batches()])
    assert scores.mean().abs() < 1e-6
    assert scorer.score_head.bias.abs() > 1e-3
    earlier = load_scorer(tmp_path / "checkpoints" / "step-00000002")
    assert earlier.score_head.bias == 0.0


def test_validation_is_a_sum_over_a_sum_and_leaves_a_report(tmp_path: Path) -> None:
    trainer, stage = tiny_trainer(tmp_path), reward_model()
    parts = [preferences(RANKINGS[:1]), preferences(RANKINGS[1:5]), preferences(RANKINGS[5:])]
    apart = trainer.validate(stage, StepData([], parts), verbose=False)[0]
    together = trainer.validate(stage, StepData([], [preferences(RANKINGS)]), verbose=False)[0]
    assert apart == pytest.approx(together, abs=1e-6)
    assert apart["val/loss"] == pytest.approx(stage.loss_sums(preferences(RANKINGS)).objective.item() / 6, abs=1e-6)
    batch = preferences(RANKINGS)
    scores, lengths = stage.scorer.scores(batch.input_ids, batch.lengths), batch.response_lengths
    assert apart["val/accuracy"] == pytest.approx((scores[batch.better] > scores[batch.worse]).float().mean().item())
    longer = lengths[batch.better] - lengths[batch.worse]
    assert apart["val/longer_wins_accuracy"] == pytest.approx(((longer > 0) + 0.5 * (longer == 0)).mean().item())
    report = json.loads((tmp_path / "reward_validation.json").read_text())
    assert report["num_pairs"] == 21
    assert "annotator_agreement" not in report
    assert sum(row["num_pairs"] for row in report["reliability"]) == 21
    assert sum(row["num_pairs"] for row in report["by_length_difference"]) == 21
    assert sum(report["scores"]["counts"]) == 18


def test_annotators_agreement_is_reported_where_the_data_knows_their_votes(tmp_path: Path) -> None:
    class Voted(StepData):
        def annotator_votes(self) -> list[list[int]]:
            return [[1, 1], [1, -1], [-1], [1, 1, 1]]

    tiny_trainer(tmp_path).validate(reward_model(), Voted([], [preferences(RANKINGS)]), verbose=False)
    report = json.loads((tmp_path / "reward_validation.json").read_text())
    assert report["annotator_agreement"] == pytest.approx(4 / 5)


def test_it_starts_from_a_language_model_and_goes_on_from_a_reward_model(tmp_path: Path) -> None:
    base = tiny_weights(tmp_path / "base")
    first = reward_model(transformer=None, init_from=base)
    trainer = tiny_trainer(tmp_path / "first", [Checkpointing()])
    trainer.fit(first, StepData([[preferences(RANKINGS)]] * 2))
    checkpoint = newest_valid_checkpoint(tmp_path / "first")
    again = reward_model(seed=9, transformer=None, init_from=str(tmp_path / "first"))
    tiny_trainer(tmp_path / "again").validate(again, StepData([], [preferences(RANKINGS)]), verbose=False)
    assert torch.equal(again.score_head.weight, first.score_head.weight)
    for ours, theirs in zip(again.transformer.parameters(), load_transformer(checkpoint).parameters(), strict=True):
        assert torch.equal(ours, theirs)
    fresh = reward_model(seed=9, transformer=None, init_from=base)
    tiny_trainer(tmp_path / "fresh").validate(fresh, StepData([], [preferences(RANKINGS)]), verbose=False)
    assert torch.equal(fresh.transformer.embedding.weight, load_transformer(base).embedding.weight)


def test_what_only_logits_need_is_not_trained(tmp_path: Path) -> None:
    config = tiny_config(tied_embeddings=False, head_bias=True)
    stage, before = reward_model(transformer=config), reward_model(transformer=config)
    tiny_trainer(tmp_path).fit(stage, StepData([[preferences(RANKINGS)]]))
    assert torch.equal(stage.transformer.head.weight, before.transformer.head.weight)
    assert not torch.equal(stage.transformer.embedding.weight, before.transformer.embedding.weight)


def test_with_adapters_the_head_is_trained_too(tmp_path: Path) -> None:
    lora = LoRAConfig(rank=2, alpha=4.0)
    stage, before = reward_model(lora=lora), reward_model()
    tiny_trainer(tmp_path, [Checkpointing()]).fit(stage, StepData([[preferences(RANKINGS)]] * 2))
    assert torch.equal(
        stage.transformer.blocks[0].attention.query.weight, before.transformer.blocks[0].attention.query.weight
    )
    assert not torch.equal(stage.score_head.weight, before.score_head.weight)
    batch = preferences(RANKINGS)
    expected = stage.scorer.scores(batch.input_ids, batch.lengths)
    torch.testing.assert_close(
        load_scorer(tmp_path).scores(batch.input_ids, batch.lengths), expected, rtol=0, atol=1e-5
    )


def test_answers_that_are_told_apart_are_learnt(tmp_path: Path) -> None:
    rankings: list[Ranking] = [([p], [[20, p], [21, p]]) for p in range(5)]
    stage = reward_model()
    tiny_trainer(tmp_path).fit(stage, StepData([[preferences(rankings)]] * 30))
    assert stage.loss_sums(preferences(rankings)).reported["accuracy"].item() == pytest.approx(5.0)
