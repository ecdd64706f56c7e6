"""The audit sees the first step as training will, and refuses masks that cannot be meant."""

from pathlib import Path
from typing import Any, Literal

import lightning as L
import pytest
import torch

from lmstack.callbacks.supervision_audit import SupervisionAudit
from lmstack.data.batch import IGNORE_INDEX, TokenBatch
from lmstack.stages.reward_model import RewardModel
from lmstack.tokenization import char_tokenizer
from tiny_preferences import preferences, stage_arguments
from tiny_run import StepData, batch_of, random_rows, tiny_config, tiny_stage, tiny_trainer

ROWS = random_rows(6, lambda i: [9, 3, 12, 5, 7, 5][i])


class Data(StepData):
    tokenizer = char_tokenizer(["abcdefghijklmnopqrstuvwxyzABC"])  # as many as the tiny model has


class Seen(L.Callback):
    """What training was given, and the random state when it began."""

    def __init__(self) -> None:
        self.ids: list[torch.Tensor] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.random_state = torch.get_rng_state()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.ids += [micro_batch.input_ids for micro_batch in batch]


def masked(fraction: Literal["none", "some", "all"]) -> TokenBatch:
    batch = batch_of(ROWS[:3])
    if fraction == "none":
        batch.labels.fill_(IGNORE_INDEX)
    elif fraction == "some":
        batch.labels[:, :2] = IGNORE_INDEX
    return batch


def fit(folder: Path, data: Data, *callbacks: L.Callback, **arguments: Any) -> None:
    tiny_trainer(folder, list(callbacks), **arguments).fit(tiny_stage(), data)


def test_it_prints_counts_and_a_sample_with_marks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, Data([[masked("some"), batch_of(ROWS[3:])]]), SupervisionAudit(expect="some"))
    out = capsys.readouterr().out
    # 9 + 3 + 12 tokens less two in each row, and 5 + 7 + 5
    assert "35 of 41 tokens supervised in 6 rows (per row 1 to 10)" in out
    letters = Data.tokenizer.decode(ROWS[0][:-1])
    assert f"{letters[:3]}⟦{letters[3:]}⟧" in out


@pytest.mark.parametrize(
    ("fraction", "expect", "message"),
    [
        ("none", "all", "None of the 24 tokens"),
        ("none", "some", "None of the 24 tokens"),
        ("all", "some", "All of the 24 tokens .* expect=all"),
        ("some", "all", "6 of the 24 tokens .* expect=some"),
    ],
)
def test_masks_that_cannot_be_meant_are_refused_before_a_step_is_taken(
    tmp_path: Path, fraction: Any, expect: Any, message: str
) -> None:
    stage, seen = tiny_stage(), Seen()
    before = {name: value.clone() for name, value in stage.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        tiny_trainer(tmp_path, [SupervisionAudit(expect=expect), seen]).fit(stage, Data([[masked(fraction)]]))
    assert not seen.ids
    assert all(torch.equal(value, before[name]) for name, value in stage.state_dict().items())


@pytest.mark.parametrize(("fraction", "expect"), [("all", "all"), ("some", "some")])
def test_masks_as_expected_train(tmp_path: Path, fraction: Any, expect: Any) -> None:
    seen = Seen()
    fit(tmp_path, Data([[masked(fraction)]]), SupervisionAudit(expect=expect), seen)
    assert len(seen.ids) == 1


def test_one_row_without_labels_among_others_is_not_refused(tmp_path: Path) -> None:
    fit(tmp_path, Data([[masked("none"), masked("some")]]), SupervisionAudit(expect="some"))


def test_training_sees_the_same_batches_and_random_state_as_without_it(tmp_path: Path) -> None:
    steps = [[batch_of(ROWS[:2])], [batch_of(ROWS[2:4])], [batch_of(ROWS[4:])]]
    with_audit, without = Seen(), Seen()
    for callbacks in ([SupervisionAudit(expect="all"), with_audit], [without]):
        torch.manual_seed(3)
        fit(tmp_path, Data(steps), *callbacks)
    assert torch.equal(with_audit.random_state, without.random_state)
    assert len(with_audit.ids) == len(without.ids) == 3
    assert all(torch.equal(a, b) for a, b in zip(with_audit.ids, without.ids, strict=True))


def test_answers_to_prompts_are_shown_with_what_is_learnt_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Data([[preferences([([1, 2, 3], [[4, 5], [6]])])]])
    stage = RewardModel(**stage_arguments(transformer=tiny_config()))
    tiny_trainer(tmp_path, [SupervisionAudit(expect="some")]).fit(stage, data)
    out = capsys.readouterr().out
    assert "3 of 9 tokens supervised in 2 rows" in out
    assert "BCa⟦bc⟧" in out  # tokens 1, 2, 3 and 4, 5
