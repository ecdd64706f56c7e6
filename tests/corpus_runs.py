"""A small dirty corpus, a config in which every kind of stage has something to drop, and what a preparation wrote."""

import gzip
import hashlib
import importlib.util
import json
import random
import typing
from pathlib import Path
from typing import Any

import zstandard

from lmstack.prep.stage_kinds import StageConfig
from lmstack.reports.corpus_report import corpus_report

OUTPUT = Path("out")
NUM_DOCUMENTS = 40
_WORDS = [
    "harbour", "engine", "garden", "winter", "letter", "signal", "village", "mirror", "copper", "teacher", "river",
    "window", "market", "bridge", "paper", "thunder", "lantern", "orchard", "compass", "valley", "kitchen",
    "station", "blanket", "meadow", "island", "pepper", "candle", "journey", "basket", "stone",
]  # fmt: skip
_EXAM = "Which of the three rivers that cross the old harbour town carries the most water in spring?"
_NOTICE = "All that we have to tell is told here in the evening, with the light on."

CONFIG: dict[str, Any] = {
    "output": str(OUTPUT),
    "sources": {
        "lines": {"paths": "raw/*.jsonl*"},
        "pages": {"paths": ["raw/*.html", "raw/*.txt"]},
        "code": {"paths": "raw/*.py"},
        "empty": {"paths": "raw/empty/*.txt"},
    },
    "stages": {
        "extract": {"kind": "extract"},
        "normalise": {"kind": "normalise"},
        "language": {"kind": "language", "keep": ["en"], "candidates": ["en", "fr", "de"]},
        "gopher": {"kind": "gopher", "min_units": 12, "only": {"formats": ["text", "html"]}},
        "repetition": {"kind": "repetition", "only": {"formats": ["text", "html"]}},
        "c4": {"kind": "c4", "min_sentences": 2, "only": {"formats": ["text", "html"]}},
        "fineweb": {"kind": "fineweb", "only": {"formats": ["text"]}},
        "code": {"kind": "code", "only": {"formats": ["code"]}},
        "words": {"kind": "word_list", "file": "words.txt"},
        "datatrove": {"kind": "datatrove", "block": "block_of_datatrove.NotTooLong"},
        "classifier": {"kind": "classifier", "model": "quality.npz", "keep_fraction": 0.9},
        "perplexity": {"kind": "perplexity", "model": "model", "keep": ["head", "middle"], "boundaries": [0.4, 0.9]},
        "privacy": {"kind": "privacy"},
        "exact": {"kind": "exact_duplicates"},
        "lines": {"kind": "repeated_lines", "min_documents": 8},
        "near": {"kind": "near_duplicates", "threshold": 0.6, "ngram": 2},
        "substrings": {"kind": "repeated_substrings", "num_words": 12},
        "exams": {"kind": "decontamination", "benchmarks": {"rivers": {"paths": "exams/*.jsonl", "fields": ["q"]}}},
    },
    "shards": {"tokenizer": "tokenizer", "validation_fraction": 0.2, "test_fraction": 0.1},
    "executor": {"kind": "local", "num_workers": 1},
}


def kinds_of_stages() -> set[str]:
    """Every kind that a config can name."""
    return {kind.__dataclass_fields__["kind"].default for kind in typing.get_args(StageConfig)}


def make_project() -> None:
    """Write sources, config and everything that the stages read into the working directory."""
    draw = random.Random(5)
    _write_sources(draw)
    _write_block_of_datatrove()
    Path("words.txt").write_text("thunder lantern\n")
    Path("exams").mkdir()
    Path("exams/rivers.jsonl").write_text(json.dumps({"q": _EXAM}) + "\n")
    _write_models()
    Path("conf").mkdir()
    Path("conf/corpus.yaml").write_text(json.dumps(CONFIG, indent=1))


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that a preparation wrote and that must not depend on how often it was killed.

    What may differ: times (`seconds`, `wall_seconds`), and in the manifest `inputs`, which has the times in it at which
    the documents' files were written.
    """
    summary = _without(json.loads((folder / "summary.json").read_text()), "wall_seconds")
    drawn = corpus_report(str(OUTPUT), json.loads((folder / "summary.json").read_text()))
    is_whole = (folder / "report.html").read_text() == drawn
    found: dict[str, Any] = {"summary.json": _without(summary, "seconds"), "the report is of the summary": is_whole}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if name in ("summary.json", "report.html"):
            continue
        if name == "corpus/manifest.json":
            found[name] = _without(json.loads(file.read_text()), "inputs")
        elif file.parent.name == "tallies":
            found[name] = _without(json.loads(file.read_text()), "seconds")
        elif name == "config.yaml":
            found[name] = _without(json.loads(file.read_text()), "output")
        else:
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def _without(value: Any, key: str) -> Any:
    """JSON without a key, at any depth."""
    if isinstance(value, dict):
        return {name: _without(item, key) for name, item in value.items() if name != key}
    return [_without(item, key) for item in value] if isinstance(value, list) else value


def _sentence(draw: random.Random) -> str:
    words = draw.sample(_WORDS, 9)
    return f"The {words[0]} and the {words[1]} that {words[2]} have {' '.join(words[3:])} with it."


def _texts(draw: random.Random) -> list[str]:
    """Documents with every fault that a stage looks for."""
    texts = [
        " ".join(_sentence(draw) for _ in range(4)) + f" Write to ann{n}@example.com." for n in range(NUM_DOCUMENTS)
    ]
    texts = [f"{text}\n{_NOTICE}" if n % 3 else text for n, text in enumerate(texts)]
    passage = " ".join(_sentence(draw) for _ in range(2))
    texts += [f"{_sentence(draw)} {_sentence(draw)} {passage} {_sentence(draw)}" for _ in range(5)]
    texts += [text.upper() for text in texts[:3]] + [f"{text} And more." for text in texts[3:8]]
    texts += [f"{_sentence(draw)} {_EXAM} {_sentence(draw)}" for _ in range(4)]
    texts += [" ".join(_sentence(draw) for _ in range(20)), "Too short.", "word " * 60, " ".join([_sentence(draw)] * 9)]
    texts += [f"{_sentence(draw)} Here is thunder lantern and the end of it."]
    texts += ["Les élèves étaient à l'école, où l'été finit. " * 3]
    return texts


def _write_sources(draw: random.Random) -> None:
    texts = _texts(draw)
    draw.shuffle(texts)
    raw = Path("raw")
    (raw / "empty").mkdir(parents=True)
    for part in range(3):
        records = [json.dumps({"text": text, "n": n}) for n, text in enumerate(texts[part::5])]
        (raw / f"{part}.jsonl").write_text("\n".join([*records, "{broken"]))
    members = [gzip.compress(json.dumps({"text": text}).encode() + b"\n") for text in texts[3::5]]
    members[1] = members[1][:40] + b"\0\0\0\0" + members[1][44:]
    (raw / "3.jsonl.gz").write_bytes(b"".join(members))
    whole = zstandard.compress("".join(json.dumps({"text": text}) + "\n" for text in texts[4::5]).encode())
    (raw / "4.jsonl.zst").write_bytes(whole[:-200])
    (raw / "gone.jsonl").symlink_to("nowhere.jsonl")
    for number in range(4):
        body = "".join(f"<p>{_sentence(draw)} {_sentence(draw)} {_sentence(draw)}</p>" for _ in range(3))
        (raw / f"{number}.html").write_text(f"<html><nav>Home</nav><main><h1>Title</h1>{body}</main></html>")
    (raw / "note.txt").write_text(" ".join(_sentence(draw) for _ in range(5)))
    (raw / "empty" / "nothing.txt").write_bytes(b"")
    lines = "\n".join(f"    {word}_total = {word}_total + {n}" for n, word in enumerate(_WORDS[:8]))
    (raw / "sums.py").write_text(f"# The sum of everything that we have read with the list.\ndef total():\n{lines}\n")
    (raw / "minified.py").write_text("x=1;" * 500)


def _write_block_of_datatrove() -> None:
    Path("block_of_datatrove.py").write_text(
        "class NotTooLong:\n    def filter(self, document):\n        return len(document.text) < 1500\n"
    )
    if importlib.util.find_spec("datatrove") is None:  # its document is all that the stage needs of it
        Path("datatrove").mkdir()
        Path("datatrove/__init__.py").write_text("")
        Path("datatrove/data.py").write_text(
            "class Document:\n    def __init__(self, text, id, metadata):\n"
            "        self.text, self.id, self.metadata = text, id, metadata\n"
        )


def _write_models() -> None:
    import numpy as np

    from lmstack.models.checkpoint import save_weights
    from lmstack.prep.quality.classifier import QualityModel
    from lmstack.tokenization import byte_tokenizer
    from tiny_transformer import transformer

    byte_tokenizer().save("tokenizer")
    weights = np.random.default_rng(0).normal(size=1 << 12).astype(np.float32)  # any scores will do
    QualityModel(weights, bias=0.0, slope=1.0, intercept=0.0, max_ngram=2).save("quality.npz")
    save_weights("model", transformer(vocab_size=byte_tokenizer().vocab_size, max_seq_len=64))
    byte_tokenizer().save("model/tokenizer")
