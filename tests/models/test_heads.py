"""A number at every position, and the folder that it is kept in."""

from pathlib import Path

import pytest
import torch

from lmstack.models import save_weights
from lmstack.models.heads import SCORE_HEAD, ScoreHead, ScoringTransformer, load_scorer, save_scorer
from tiny_transformer import tokens, transformer


def scorer(**changes: object) -> ScoringTransformer:
    model = ScoringTransformer(transformer(**changes))
    with torch.no_grad():
        model.score_head.bias.fill_(0.7)
    return model


def test_a_score_is_the_linear_map_of_the_hidden_state() -> None:
    model, ids = scorer(), tokens(2, 9)
    hidden = model.transformer(ids)
    expected = torch.einsum("btd,d->bt", hidden, model.score_head.weight) + 0.7
    torch.testing.assert_close(model(ids), expected, rtol=0, atol=1e-5)


def test_a_row_s_score_is_at_its_last_token_whatever_pads_it() -> None:
    model, ids = scorer(), tokens(3, 9)
    lengths = torch.tensor([9, 4, 1])
    scores = model.scores(ids, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = model(ids[row : row + 1, :length])[0, -1]
        torch.testing.assert_close(scores[row], alone, rtol=0, atol=1e-5)
    other = ids.clone()
    other[1, 4:], other[2, 1:] = 3, 5
    torch.testing.assert_close(model.scores(other, lengths), scores, rtol=0, atol=1e-6)


def test_a_number_does_not_know_later_tokens() -> None:
    model, ids = scorer(), tokens(1, 9)
    changed = ids.clone()
    changed[0, 5:] = (changed[0, 5:] + 1) % 31
    before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=1e-6)
    assert (before[:, 5:] - after[:, 5:]).abs().min() > 1e-4


def test_documents_of_a_packed_row_are_scored_as_if_alone() -> None:
    model, ids = scorer(), tokens(1, 9)
    documents = torch.tensor([[0] * 4 + [1] * 5])
    packed = model(ids, document_ids=documents)
    torch.testing.assert_close(packed[:, 4:], model(ids[:, 4:]), rtol=0, atol=1e-5)


def test_the_head_starts_with_the_standard_deviation_of_its_paper() -> None:
    torch.manual_seed(0)
    head = ScoreHead(4095)
    assert head.weight.std().item() == pytest.approx(1 / 64, rel=0.05)
    assert head.bias.item() == 0.0


def test_scores_are_float32_under_autocast_and_their_head_too() -> None:
    model, ids = scorer(), tokens(2, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.transformer(ids)
        scores = model.score_head(hidden)
    assert scores.dtype == torch.float32
    expected = hidden.double() @ model.score_head.weight.double() + 0.7
    torch.testing.assert_close(scores.double(), expected.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"tied_embeddings": False, "head_bias": True}], ids=["tied", "untied"])
def test_a_saved_scorer_is_loaded_as_it_was(tmp_path: Path, changes: dict[str, bool]) -> None:
    model, ids = scorer(**changes), tokens(2, 9)
    save_scorer(tmp_path / "scorer", model)
    assert torch.equal(load_scorer(tmp_path / "scorer")(ids), model(ids))
    fresh = load_scorer(tmp_path / "scorer", new_head=True)
    assert not torch.equal(fresh.score_head.weight, model.score_head.weight)
    assert torch.equal(fresh.transformer(ids), model.transformer(ids))


def test_a_language_model_is_no_scorer_unless_a_new_head_is_asked_for(tmp_path: Path) -> None:
    save_weights(tmp_path, transformer())
    with pytest.raises(ValueError, match=rf"{SCORE_HEAD}.*not a reward model's"):
        load_scorer(tmp_path)
    assert load_scorer(tmp_path, new_head=True).score_head.bias.item() == 0.0


def test_a_head_of_another_model_is_refused(tmp_path: Path) -> None:
    save_scorer(tmp_path, scorer())
    save_scorer(tmp_path / "other", scorer(dim=16))
    (tmp_path / "other" / SCORE_HEAD).replace(tmp_path / SCORE_HEAD)
    with pytest.raises(ValueError, match=r"width \(16,\).*\(32,\)"):
        load_scorer(tmp_path)


def test_a_bidirectional_transformer_is_refused() -> None:
    with pytest.raises(ValueError, match="causal=False"):
        ScoringTransformer(transformer(causal=False))
