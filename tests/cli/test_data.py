import json
from pathlib import Path

import pytest

from lmstack.cli.data import baselines, build, last_validation, verify
from lmstack.cli.main import main
from lmstack.cli.tokenizer import report, train
from lmstack.prep.split import is_validation
from lmstack.tokenization import Tokenizer
from tiny_corpus import tiny_corpus


@pytest.fixture
def texts(tmp_path: Path) -> str:
    records = [{"text": f"record number {i}, and {i * i} more"} for i in range(60)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, records)))
    return str(tmp_path / "t.jsonl")


def test_text_becomes_a_tokenizer_and_a_corpus_with_a_table_of_its_sources(
    tmp_path: Path, texts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(output=str(tmp_path / "t"), sources={"a": texts}, vocab_size=280, validation_fraction=0.2)
    build(output=str(tmp_path / "c"), sources={"a": texts}, tokenizer=str(tmp_path / "t"), validation_fraction=0.2)
    verify(path=str(tmp_path / "c"))
    report(tokenizer=str(tmp_path / "t"), sources={"a": texts})
    shown = capsys.readouterr().out
    assert "280 tokens" in shown
    assert "bytes/token" in shown
    assert "tokens/word" in shown
    assert "every shard is as it was built" in shown


def test_a_tokenizer_is_trained_on_the_training_side_only(tmp_path: Path) -> None:
    import hashlib

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
    with pytest.raises(ValueError, match="bpe needs a vocab_size"):
        train(output=str(tmp_path / "d"), sources={"a": texts})
    with pytest.raises(ValueError, match="vocab_size=99 with kind=byte"):
        train(output=str(tmp_path / "d"), sources={"a": texts}, kind="byte", vocab_size=99)


def test_baselines_are_shown_beside_a_run_and_kept_with_the_corpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_corpus(tmp_path, {"a": [f"text number {i}" for i in range(40)]}, {"a": ["text number 41"]})
    run = tmp_path / "run"
    run.mkdir()
    rows = ["step,train/loss,val/bits_per_byte", "1,3.0,", "2,,2.5", "4,,1.25", "5,1.0,"]
    (run / "metrics.csv").write_text("\n".join(rows))
    baselines(path=str(path), run=str(run))
    shown = capsys.readouterr().out
    assert "after 4 steps" in shown
    assert "1.250" in shown
    kept = json.loads((path / "baselines.json").read_text())
    assert f"{kept['xz_bits_per_byte']:.3f}" in shown
    assert f"{kept['trigram_bits_per_byte']:.3f}" in shown


def test_a_run_without_validation_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no metrics\.csv at"):
        last_validation(tmp_path)
    (tmp_path / "metrics.csv").write_text("step,train/loss\n1,2.0\n")
    with pytest.raises(ValueError, match="holds no val/bits_per_byte"):
        last_validation(tmp_path)


def test_mistakes_are_one_line_and_an_exit_status(
    tmp_path: Path, texts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(output=str(tmp_path / "t"), sources={"a": texts}, kind="byte")
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "\xff"}')
    for argument, message in {
        f"sources.a={tmp_path}/nowhere.txt": "nowhere.txt does not exist",
        f"sources.a={tmp_path}/bad.jsonl": "bad.jsonl is not utf-8: byte 0xff at offset 10",
    }.items():
        status = main(["data", "build", f"output={tmp_path / 'c'}", f"tokenizer={tmp_path / 't'}", argument])
        errors = capsys.readouterr().err.strip().splitlines()
        assert status == 2
        assert len(errors) == 1
        assert message in errors[0]
    assert main(["data", "verify", f"path={tmp_path / 'c'}"]) == 2
    assert "is unfinished" in capsys.readouterr().err
