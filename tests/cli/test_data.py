import json
from pathlib import Path

import pytest

from lmstack.cli.compare_tokenizers import report
from lmstack.cli.data import baselines, build, last_validation, verify
from lmstack.cli.main import main
from lmstack.cli.tokenizer import train
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
