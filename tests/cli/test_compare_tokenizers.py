import json
from pathlib import Path

import pytest

from lmstack.cli.compare_tokenizers import compare
from lmstack.prep.readers import SourceConfig, read_source
from lmstack.prep.split import is_validation
from lmstack.tokenization import Tokenizer, byte_tokenizer, train_bpe


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    for name, text in (("en", "the cat and the hat, number"), ("zh", "天地玄黃，宇宙洪荒")):
        records = [{"text": f"{text} {i}"} for i in range(50)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    return {name: str(tmp_path / f"{name}.jsonl") for name in ("en", "zh")}


def test_tokenizers_are_compared_on_the_held_out_side(
    sources: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    byte_tokenizer().save(tmp_path / "bytes")
    train_bpe(["the cat and the hat, number " * 20], 270).save(tmp_path / "pairs")
    names = {"bytes": str(tmp_path / "bytes"), "pairs": str(tmp_path / "pairs" / "tokenizer.json")}
    output = tmp_path / "comparison.json"
    compare(tokenizers=names, sources=sources, validation_fraction=0.3, seed=5, output=str(output))
    found = json.loads(output.read_text())
    for name, path in names.items():
        tokenizer, figures = Tokenizer.load(path), found["tokenizers"][name]
        for source, file in sources.items():
            documents = [d for d in read_source(source, SourceConfig(file)) if is_validation(d.key, 5, 0.3)]
            counts = figures["sources"][source]
            assert counts["documents"] == len(documents) > 5
            assert counts["bytes"] == sum(len(d.text.encode()) for d in documents)
            assert counts["tokens"] == sum(len(tokenizer.encode(d.text)) for d in documents)
            assert counts["bytes_per_token"] == counts["bytes"] / counts["tokens"]
        assert figures["languages"]["chinese"] == figures["sources"]["zh"]
        assert 0 < figures["renyi_efficiency"] < 1
        assert figures["vocabulary"]["unseen"] > 100
    shown = capsys.readouterr().out
    assert "bytes/token" in shown
    assert "unreachable" in shown
    assert "bits per byte" in shown


def test_nothing_to_compare_is_refused(sources: dict[str, str], tmp_path: Path) -> None:
    byte_tokenizer().save(tmp_path / "bytes")
    names = {"bytes": str(tmp_path / "bytes")}
    with pytest.raises(ValueError, match="tokenizers is empty"):
        compare(tokenizers={}, sources=sources)
    with pytest.raises(ValueError, match="must be above 0 and at most 1"):
        compare(tokenizers=names, sources=sources, validation_fraction=0.0)
    with pytest.raises(ValueError, match="holds out no document"):
        compare(tokenizers=names, sources=sources, validation_fraction=1e-9)
    with pytest.raises(ValueError, match="There is no tokenizer at nowhere"):
        compare(tokenizers={"a": "nowhere"}, sources=sources)
