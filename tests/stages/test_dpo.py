"""Preference optimisation: the first loss, the reference, the implied reward, each loss end to end."""

import math
from itertools import permutations
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F

from lmstack.callbacks import Checkpointing
from lmstack.data.batch import IGNORE_INDEX
from lmstack.losses.preference_kinds import (
    CDPOLoss,
    DPOLoss,
    IPOLoss,
    KTOLoss,
    ORPOLoss,
    PreferenceLoss,
    SimPOLoss,
)
from lmstack.models import load_transformer
from lmstack.nn.lora import LoRAConfig, has_lora
from lmstack.stages.dpo import DPO, mismatch
from tiny_preferences import preferences, random_rankings, stage_arguments, tiny_weights
from tiny_run import StepData, tiny_config, tiny_trainer

RANKINGS = [*random_rankings(2, num_answers=3), *random_rankings(4, num_answers=2, seed=1)]
LORA = LoRAConfig(rank=2, alpha=4.0)
LOSSES: list[PreferenceLoss] = [
    DPOLoss(beta=0.3),
    CDPOLoss(label_smoothing=0.1, beta=0.3),
    IPOLoss(beta=0.3),
    SimPOLoss(),
    ORPOLoss(),
    KTOLoss(beta=0.3),
]
by_kind = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)


def dpo(loss: PreferenceLoss | None = None, seed: int = 0, **arguments: Any) -> DPO:
    torch.manual_seed(seed)
    return DPO(loss or DPOLoss(), **stage_arguments(**({"transformer": tiny_config()} | arguments)))


class Logged(L.Callback):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.gradients: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self.gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}


def fitted(folder: Path, stage: DPO, steps: list[Any], **options: Any) -> Logged:
    logged = Logged()
    tiny_trainer(folder, [logged], **options).fit(stage, StepData(steps))
    return logged


@pytest.mark.parametrize("lora", [None, LORA, LoRAConfig(rank=2, alpha=4.0, kind="dora")], ids=["full", "lora", "dora"])
@pytest.mark.parametrize("warm", [False, True])
def test_the_first_loss_is_ln_2_with_dropout_in_the_config_and_every_reference(
    tmp_path: Path, lora: LoRAConfig | None, warm: bool
) -> None:
    config = tiny_config(dropout=0.3)
    arguments: dict[str, Any] = {"transformer": config, "lora": lora}
    if warm:
        arguments = {"transformer": None, "lora": lora, "init_from": tiny_weights(tmp_path / "base", config=config)}
    rankings = random_rankings(4, num_answers=2)
    logged = fitted(tmp_path, dpo(**arguments), [[preferences(rankings)]])
    assert logged.rows[0]["train/loss"] == torch.tensor(math.log(2)).item()
    assert logged.rows[0]["train/reward_margin"] == 0.0
    assert logged.rows[0]["train/chosen_reward"] == 0.0


def test_the_objective_is_the_paper_s_from_full_logits() -> None:
    stage = dpo(DPOLoss(beta=0.7))
    stage.reference = dpo(seed=4).transformer.requires_grad_(False)

    def log_prob(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> torch.Tensor:
        ids = torch.tensor(prompt + answer)
        log_probs = model.logits(model(ids[None]))[0].log_softmax(-1)  # type: ignore[operator]
        return sum(log_probs[t - 1, ids[t]] for t in range(len(prompt), len(ids)))  # type: ignore[return-value]

    expected = torch.zeros(())
    for prompt, ranked in RANKINGS:
        ratios = [log_prob(stage.transformer, prompt, a) - log_prob(stage.reference, prompt, a) for a in ranked]
        pairs = [(i, j) for i in range(len(ranked)) for j in range(i + 1, len(ranked))]
        expected = expected + sum(-F.logsigmoid(0.7 * (ratios[i] - ratios[j])) for i, j in pairs) / len(pairs)
    torch.testing.assert_close(stage.loss_sums(preferences(RANKINGS)).objective, expected, rtol=0, atol=1e-4)


@by_kind
def test_each_loss_raises_its_margin_on_what_it_is_trained_on(tmp_path: Path, loss: PreferenceLoss) -> None:
    rankings = random_rankings(4, num_answers=2)
    logged = fitted(tmp_path, dpo(loss), [[preferences(rankings)]] * 25)
    first, last = logged.rows[0], logged.rows[-1]
    assert last["train/loss"] < first["train/loss"]
    assert last["train/reward_margin"] > first["train/reward_margin"] + 0.1
    assert last["train/accuracy"] == 1.0


@by_kind
@pytest.mark.parametrize("split", [[[0], [1], [2], [3], [4], [5]], [[5, 4, 3], [0, 1, 2]]])
def test_gradients_do_not_depend_on_the_split_into_micro_batches(
    tmp_path: Path, loss: PreferenceLoss, split: list[list[int]]
) -> None:
    """KTO's too: before the first update its reference point is 0 however it is estimated."""

    def gradients(parts: list[list[int]]) -> dict[str, torch.Tensor]:
        step = [preferences([RANKINGS[i] for i in part]) for part in parts]
        return fitted(tmp_path, dpo(loss), [step], precision="64-true").gradients

    whole = gradients([[0, 1, 2, 3, 4, 5]])
    for name, gradient in gradients(split).items():
        torch.testing.assert_close(gradient, whole[name], rtol=0, atol=1e-10, msg=name)


def test_the_reference_stays_and_the_model_moves(tmp_path: Path) -> None:
    stage, start = dpo(), dpo()
    fitted(tmp_path, stage, [[preferences(RANKINGS)]] * 3)
    assert stage.reference is not None
    for (name, reference), old in zip(stage.reference.named_parameters(), start.transformer.parameters(), strict=True):
        assert torch.equal(reference, old), name
        assert not torch.equal(stage.transformer.get_parameter(name), old), name


def test_with_adapters_the_reference_costs_no_copy_and_stays(tmp_path: Path) -> None:
    stage, batch = dpo(lora=LORA), preferences(RANKINGS)
    start = dpo().transformer
    fitted(tmp_path, stage, [[batch]] * 3)
    assert stage.reference is None
    assert has_lora(stage.transformer)
    before = stage._summed(start, batch.input_ids, batch.labels)
    reference = stage._reference_log_probs(batch.input_ids, batch.labels)
    torch.testing.assert_close(reference, before, rtol=0, atol=1e-6)
    assert (stage._summed(stage.transformer, batch.input_ids, batch.labels) - before).abs().max() > 1e-2


@pytest.mark.parametrize("loss", [SimPOLoss(), ORPOLoss()], ids=lambda loss: loss.kind)
def test_a_loss_without_reference_keeps_none(tmp_path: Path, loss: PreferenceLoss) -> None:
    stage = dpo(loss)
    fitted(tmp_path, stage, [[preferences(RANKINGS)]])
    assert stage.reference is None


def test_the_implied_reward_is_the_true_one_up_to_a_constant(tmp_path: Path) -> None:
    """Infinitely many Bradley–Terry comparisons of 6 one-token answers to 3 prompts, as weights: β log π/π_ref must
    come out as the scores behind them."""
    num_prompts, num_answers, beta = 3, 6, 0.5
    true = torch.randn(num_prompts, num_answers, generator=torch.Generator().manual_seed(0))
    batch = preferences([([p], [[10 + a] for a in range(num_answers)]) for p in range(num_prompts)])
    pairs = [
        (p * num_answers + a, p * num_answers + b)
        for p in range(num_prompts)
        for a, b in permutations(range(num_answers), 2)
    ]
    batch.better, batch.worse = torch.tensor(pairs).T
    scores = true.flatten()
    batch.pair_weight = torch.sigmoid(scores[batch.better] - scores[batch.worse]) / (num_answers * (num_answers - 1))
    batch.is_tie = torch.zeros(len(batch.better), dtype=torch.bool)
    batch.margin = torch.zeros(len(pairs))
    stage = dpo(DPOLoss(beta=beta))
    fitted(tmp_path, stage, [[batch]] * 150)
    with torch.no_grad():
        answers = stage._answers(batch)
    implied = (beta * (answers.policy - answers.reference)).view(num_prompts, num_answers)
    implied, centred = (x - x.mean(1, keepdim=True) for x in (implied, true))
    slope = ((implied * centred).sum() / centred.square().sum()).item()
    correlation = torch.corrcoef(torch.stack([implied.flatten(), centred.flatten()]))[0, 1].item()
    assert 0.9 < slope < 1.1
    assert correlation > 0.99


def test_kto_s_mismatched_rows_are_each_prompt_with_another_prompt_s_answer() -> None:
    batch = preferences([([1, 2, 3], [[10, 11, 12], [13]]), ([4], [[14, 15]])])
    batch.desirability = torch.tensor([1.0, -1.0, 1.0])
    made = mismatch(batch, 16)
    assert made is not None
    ids, labels = made
    x = IGNORE_INDEX
    assert ids.tolist() == [[1, 2, 3, 14, 15], [1, 2, 3, 14, 15], [4, 10, 11, 12, 0]]
    assert labels.tolist() == [[x, x, 14, 15, x], [x, x, 14, 15, x], [10, 11, 12, x, x]]
    assert mismatch(preferences([([1], [[2], [3]])]), 16) is None


def test_kto_s_reference_point_is_the_mean_log_ratio_of_those_rows_and_not_negative() -> None:
    stage, batch = dpo(KTOLoss()), preferences(RANKINGS)
    stage.reference = dpo(seed=4).transformer.requires_grad_(False)
    stage._sum_over_ranks = lambda value: value  # type: ignore[method-assign]  # it has no trainer
    stage.prepare_step([batch])
    made = mismatch(batch, 16)
    assert made is not None
    ratio = stage._summed(stage.transformer, *made) - stage._summed(stage.reference, *made)
    assert stage._reference_point.item() == pytest.approx(max(0.0, ratio.mean().item()), abs=1e-5)
    stage.reference, stage.transformer = stage.transformer, stage.reference
    stage.prepare_step([batch])
    assert stage._reference_point.item() == pytest.approx(max(0.0, -ratio.mean().item()), abs=1e-5)


def test_kto_learns_from_answers_without_pairs(tmp_path: Path) -> None:
    batch = preferences([([p], [[10 + p, 5], [20 + p]]) for p in range(4)])
    batch.better, batch.worse = batch.better[:0], batch.worse[:0]
    batch.pair_weight, batch.margin, batch.is_tie = batch.pair_weight[:0], batch.margin[:0], batch.is_tie[:0]
    assert batch.num_supervised == 8
    stage = dpo(KTOLoss(beta=0.5))
    logged = fitted(tmp_path, stage, [[batch]] * 20)
    assert logged.rows[0]["train/loss"] == pytest.approx(0.5)
    with torch.no_grad():
        answers = stage._answers(batch)
    ratios = answers.policy - answers.reference
    assert (ratios[batch.desirability > 0] > 0).all()
    assert (ratios[batch.desirability < 0] < 0).all()


@by_kind
def test_validation_is_a_sum_over_a_sum(tmp_path: Path, loss: PreferenceLoss) -> None:
    stage, trainer = dpo(loss), tiny_trainer(tmp_path)
    parts = [preferences(RANKINGS[:1]), preferences(RANKINGS[1:])]
    apart = trainer.validate(stage, StepData([], parts), verbose=False)[0]
    together = trainer.validate(stage, StepData([], [preferences(RANKINGS)]), verbose=False)[0]
    assert apart == pytest.approx(together, abs=1e-5)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_checkpoint_is_the_model_and_not_its_reference(tmp_path: Path, lora: LoRAConfig | None) -> None:
    stage = dpo(lora=lora)
    tiny_trainer(tmp_path, [Checkpointing()]).fit(stage, StepData([[preferences(RANKINGS)]] * 2))
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(load_transformer(tmp_path)(ids), stage.transformer(ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DPOLoss(beta=0.0), "beta=0"),
        (lambda: CDPOLoss(label_smoothing=0.5), "label_smoothing=0.5"),
        (lambda: KTOLoss(undesirable_coef=-1.0), "undesirable_coef"),
    ],
)
def test_numbers_out_of_range_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
