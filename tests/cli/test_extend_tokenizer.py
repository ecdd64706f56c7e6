import json
from pathlib import Path

import pytest
import torch

from lmstack.cli.extend_tokenizer import extend, resize
from lmstack.models import load_transformer, save_weights
from lmstack.stages.warm_start import build_transformer
from lmstack.tokenization import Tokenizer, train_bpe
from tiny_transformer import transformer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    old = train_bpe(["the cat sat on the mat, the hat " * 30], 270)
    save_weights(tmp_path / "model", transformer(vocab_size=272, tied_embeddings=False))
    old.save(tmp_path / "model" / "tokenizer")
    return tmp_path / "model"


def test_a_model_gets_rows_for_words_learnt_from_text(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "domain.jsonl").write_text(json.dumps({"text": "kinase phosphatase " * 30}) + "\n")
    new = str(tmp_path / "new")
    sources = {"domain": str(tmp_path / "domain.jsonl")}
    extend(tokenizer=str(model / "tokenizer"), output=new, sources=sources, num_new=7, validation_fraction=0.0)
    resize(checkpoint=str(model), tokenizer=new, output=str(tmp_path / "grown"), multiple_of=8)
    shown = capsys.readouterr().out
    assert "277 tokens, 7 of them new" in shown
    assert "272 -> 280 rows, 7 of them means of old ones" in shown
    grown, before = load_transformer(tmp_path / "grown"), load_transformer(model)
    assert Tokenizer.load(tmp_path / "grown" / "tokenizer").vocab_size == 277
    assert build_transformer(None, str(tmp_path / "grown")).config == grown.config  # what model.init_from does
    old, extended = Tokenizer.load(model / "tokenizer"), Tokenizer.load(new)
    ids = torch.tensor([old.encode("the cat sat")])
    with torch.no_grad():
        torch.testing.assert_close(
            grown.logits(grown(ids))[..., :270], before.logits(before(ids))[..., :270], rtol=0, atol=1e-6
        )
    for index in range(270, 277):
        pieces = before.embedding.weight[old.encode(extended.decode([index]))]
        torch.testing.assert_close(grown.embedding.weight[index], pieces.mean(0), rtol=0, atol=1e-6)


def test_named_and_special_tokens_get_rows_too(model: Path, tmp_path: Path) -> None:
    extend(tokenizer=str(model / "tokenizer"), output=str(tmp_path / "new"), tokens=["kinase"])
    Tokenizer.load(tmp_path / "new").with_special_tokens(["<|im_start|>"]).save(tmp_path / "newer")
    resize(checkpoint=str(model), tokenizer=str(tmp_path / "newer"), output=str(tmp_path / "grown"))
    before, grown = load_transformer(model).embedding.weight, load_transformer(tmp_path / "grown").embedding.weight
    assert grown.shape[0] == 272
    torch.testing.assert_close(grown[271], before[:270].mean(0), rtol=0, atol=1e-6)


def test_what_does_not_fit_together_is_refused(model: Path, tmp_path: Path) -> None:
    old, new = str(model / "tokenizer"), str(tmp_path / "new")
    for options in ({}, {"tokens": ["a"], "num_new": 3}, {"sources": {"a": "b"}}, {"num_new": 3}):
        with pytest.raises(ValueError, match="Give either tokens, or sources and num_new"):
            extend(tokenizer=old, output=new, **options)
    with pytest.raises(ValueError, match="num_new=0"):
        extend(tokenizer=old, output=new, sources={"a": "b"}, num_new=0)
    with pytest.raises(ValueError, match="exists already"):
        resize(checkpoint=str(model), tokenizer=old, output=str(tmp_path))
    train_bpe(["another text altogether " * 20], 271).save(new)
    with pytest.raises(ValueError, match="gives old tokens other ids"):
        resize(checkpoint=str(model), tokenizer=new, output=str(tmp_path / "grown"))
    assert not (tmp_path / "grown").exists()
    (model / "score_head.safetensors").touch()
    with pytest.raises(ValueError, match=r"holds score_head.safetensors: only whole language models"):
        resize(checkpoint=str(model), tokenizer=old, output=str(tmp_path / "grown"))
