"""Bits per byte are those of a model by hand; buckets are thirds."""

import json
import math
from pathlib import Path

import pytest
import torch

import tiny_transformer
from lmstack.models.checkpoint import save_weights
from lmstack.prep.document import Document
from lmstack.prep.quality.perplexity import BitsPerByte
from lmstack.prep.quality.scored import PerplexityBuckets
from lmstack.prep.stage import Context
from lmstack.tokenization import byte_tokenizer


@pytest.fixture
def model(tmp_path: Path) -> str:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    save_weights(tmp_path / "model", tiny_transformer.transformer(vocab_size=tokenizer.vocab_size))
    tokenizer.save(tmp_path / "model" / "tokenizer")
    return str(tmp_path / "model")


def test_bits_per_byte_are_those_of_the_logits(model: str) -> None:
    from lmstack.models.checkpoint import load_transformer

    tokenizer, transformer = byte_tokenizer(), load_transformer(model).eval()
    opening = [] if tokenizer.eot_id is None else [tokenizer.eot_id]
    ids = torch.tensor([opening + tokenizer.encode("some text")])
    with torch.no_grad():
        logits = transformer.logits(transformer(ids[:, :-1])).log_softmax(-1)
    expected = -float(logits.gather(-1, ids[:, 1:, None]).sum()) / math.log(2) / len(b"some text")
    assert BitsPerByte(model, 64)("some text") == pytest.approx(expected, rel=1e-4)


def test_documents_are_sorted_into_thirds(model: str, tmp_path: Path) -> None:
    stage = PerplexityBuckets(model=model, keep=["head", "middle"])
    documents = [Document(f"document number {n} {'x' * n}", str(n), "s") for n in range(9)]
    stage.survey(documents, tmp_path / "survey")
    (tmp_path / "decisions").mkdir()
    stage.decide([tmp_path / "survey"], tmp_path / "decisions")
    judge = stage.filter(Context(0, tmp_path / "decisions"))
    kept = [verdict for verdict in map(judge, documents) if isinstance(verdict, Document)]
    assert len(kept) == 6
    assert sorted(document.metadata["perplexity_bucket"] for document in kept) == ["head"] * 3 + ["middle"] * 3
    assert len(json.loads((tmp_path / "decisions" / "thresholds.json").read_text())) == 2


def test_boundaries_must_rise() -> None:
    with pytest.raises(ValueError, match="do not rise"):
        PerplexityBuckets(model="x", boundaries=(0.7, 0.3))
