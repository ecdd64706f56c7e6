import hashlib
import json
from pathlib import Path

import pytest

from lmstack.cli.tokenizer import train
from lmstack.prep.split import is_validation
from lmstack.tokenization import Tokenizer


@pytest.fixture
def texts(tmp_path: Path) -> str:
    records = [{"text": f"record number {i}, and {i * i} more"} for i in range(60)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, records)))
    return str(tmp_path / "t.jsonl")


def test_a_tokenizer_is_trained_on_the_training_side_only(tmp_path: Path) -> None:
    texts = [f"{'QZX' * 30} {i}" if i % 2 else f"plain words and more {i}" for i in range(40)]
    keys = [hashlib.blake2b(text.encode(), digest_size=16).hexdigest() for text in texts]
    held_out = [text for text, key in zip(texts, keys, strict=True) if is_validation(key, 0, 0.3)]
    kept = [text for text, key in zip(texts, keys, strict=True) if not is_validation(key, 0, 0.3)]
    lines = [text for text in texts if text in kept or "QZX" in text]
    lines = [text for text in lines if not (text in kept and "QZX" in text)]  # QZX in held-out documents only
    assert any("QZX" in text for text in held_out)
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in lines))
    sources = {"a": str(tmp_path / "a.jsonl")}
    train(output=str(tmp_path / "t"), sources=sources, vocab_size=265, validation_fraction=0.3)
    assert len(Tokenizer.load(tmp_path / "t").encode("QZX")) == 3
    train(output=str(tmp_path / "u"), sources=sources, vocab_size=265, validation_fraction=0.0)
    assert len(Tokenizer.load(tmp_path / "u").encode("QZX")) < 3


def test_byte_and_character_tokenizers_have_vocabularies_of_their_own(tmp_path: Path, texts: str) -> None:
    train(output=str(tmp_path / "b"), sources={"a": texts}, kind="byte")
    train(output=str(tmp_path / "c"), sources={"a": texts}, kind="char")
    assert Tokenizer.load(tmp_path / "b").vocab_size == 257
    assert Tokenizer.load(tmp_path / "c").eot_id is None
    with pytest.raises(ValueError, match="bpe and unigram need a vocab_size"):
        train(output=str(tmp_path / "d"), sources={"a": texts})
    with pytest.raises(ValueError, match="vocab_size=99 with kind=byte"):
        train(output=str(tmp_path / "d"), sources={"a": texts}, kind="byte", vocab_size=99)


def test_a_sweep_of_sizes_writes_a_folder_for_each(tmp_path: Path, texts: str) -> None:
    for kind in ("bpe", "unigram"):
        train(output=str(tmp_path / kind), sources={"a": texts}, vocab_size=[260, 280], kind=kind)
        for size in (260, 280):
            assert Tokenizer.load(tmp_path / kind / str(size)).vocab_size == size


def test_what_a_tokenizer_is_trained_on_is_drawn_by_weight(
    tmp_path: Path, texts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "z.txt").write_text("天地玄黃，宇宙洪荒。\n" * 400, encoding="utf-8")
    sources = {"a": texts, "z": str(tmp_path / "z.txt")}
    options = {"sources": sources, "vocab_size": 290, "sample_bytes": 40_000, "validation_fraction": 0.0}
    train(output=str(tmp_path / "t"), weights={"a": 1.0, "z": 0.0}, **options)
    assert len(Tokenizer.load(tmp_path / "t").encode("天地")) == 6
    train(output=str(tmp_path / "u"), temperature=1.0, **options)
    assert len(Tokenizer.load(tmp_path / "u").encode("天地")) < 6
    assert "about 40,000" in capsys.readouterr().err
    first = Tokenizer.load(tmp_path / "u").fingerprint
    train(output=str(tmp_path / "u"), temperature=1.0, **options)
    assert Tokenizer.load(tmp_path / "u").fingerprint == first
    with pytest.raises(ValueError, match=r"weights=\{'a': 1.0, 'z': 0.0\} with kind=char: only bpe and unigram"):
        train(output=str(tmp_path / "v"), sources=sources, kind="char", weights={"a": 1.0, "z": 0.0})
