"""Exact duplicates: the same text but for spaces and case, wherever it comes from."""

import random
from pathlib import Path

from corpus_stages import run_stage, web
from lmstack.prep.deduplication.exact import ExactDuplicates
from lmstack.prep.document import Document, Dropped


def test_copies_are_dropped_in_favour_of_the_longest(tmp_path: Path) -> None:
    documents = web(["A text.", "another", "a  text. ", "a text.", "a text", "Cafe\u0301", "CAFÉ"])
    verdicts, _ = run_stage(ExactDuplicates(), [documents[:3], documents[3:]], tmp_path / "run")
    dropped = {key: verdict for key, verdict in verdicts.items() if isinstance(verdict, Dropped)}
    assert sorted(dropped) == ["0000", "0003", "0006"]
    assert dropped["0000"].reason == "exact duplicate"
    assert dropped["0003"].detail == "of 0002, similarity 1.000"
    assert verdicts["0005"].metadata == {"cluster": "0005"}


def test_punctuation_makes_another_text(tmp_path: Path) -> None:
    verdicts, _ = run_stage(ExactDuplicates(), [web(["a + b", "a - b", "你好。", "你好！"])], tmp_path / "run")
    assert all(isinstance(verdict, Document) for verdict in verdicts.values())


def test_one_of_each_text_is_kept_in_any_order(tmp_path: Path) -> None:
    draw = random.Random(0)
    documents = web([f"text {draw.randrange(60)}" for _ in range(200)])
    first, _ = run_stage(ExactDuplicates(), [documents], tmp_path / "one")
    draw.shuffle(documents)
    second, _ = run_stage(ExactDuplicates(), [documents[:9], [], documents[9:]], tmp_path / "three")
    assert first == second
    assert (tmp_path / "one/clusters.jsonl").read_bytes() == (tmp_path / "three/clusters.jsonl").read_bytes()
    kept = [verdict.text for verdict in first.values() if isinstance(verdict, Document)]
    assert sorted(kept) == sorted({document.text for document in documents})
