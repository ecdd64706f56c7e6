"""What is alike is on one side of the split, whatever cut it down to that."""

from pathlib import Path

import pytest

from corpus_stages import run_stage
from lmstack.prep.document import Document, Dropped
from lmstack.prep.hold_out import HELD_OUT, KEY, HoldOut


def document(number: int, text: str, **metadata: str) -> Document:
    return Document(text, f"{number:04d}", "web", metadata)


def keys(partitions: list[list[Document]], folder: Path) -> list[str]:
    verdicts, _ = run_stage(HoldOut(), partitions, folder / "run")
    return [verdict.metadata[KEY] for verdict in verdicts.values() if isinstance(verdict, Document)]


def test_a_cluster_comes_before_a_key_and_a_key_before_the_text(tmp_path: Path) -> None:
    documents = [
        document(0, "a", cluster="c", key="k"),
        document(1, "b", cluster="c"),
        document(2, "d", key="k"),
        document(3, "e", key="k"),
        document(4, "f"),
    ]
    first, second, third, fourth, fifth = keys([documents], tmp_path)
    assert first == second != third == fourth != fifth


def test_documents_that_became_the_same_text_have_one_key(tmp_path: Path) -> None:
    """As when lines were cut after duplicates were looked for; the corpus would be refused for it."""
    one = [document(0, "same", cluster="x"), document(1, "other", cluster="x"), document(2, "alone")]
    two = [document(3, "same"), document(4, "also same", cluster="y"), document(5, "same", key="z")]
    three = [document(6, "also same", key="z"), document(7, "another", cluster="y"), document(8, "one more", key="q")]
    found = keys([one, two, three], tmp_path)
    joined = [found[place] for place in (0, 1, 3, 4, 5, 6, 7)]
    assert len(set(joined)) == 1
    assert len({joined[0], found[2], found[8]}) == 3


@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_the_share_asked_for_is_set_aside_by_key(tmp_path: Path, fraction: float) -> None:
    documents = [document(number, f"text {number}", key=f"{number // 2}") for number in range(2000)]
    verdicts, _ = run_stage(HoldOut(test_fraction=fraction), [documents], tmp_path / "run")
    held_out = [number for number, verdict in enumerate(verdicts.values()) if isinstance(verdict, Dropped)]
    assert {verdict.reason for verdict in verdicts.values() if isinstance(verdict, Dropped)} <= {HELD_OUT}
    assert abs(len(held_out) / 2000 - fraction) <= 0.05
    assert {number ^ 1 for number in held_out} == set(held_out)
