"""Lines and paragraphs of many documents are cut, and only those."""

from pathlib import Path

import pytest

from corpus_stages import run_stage, web
from lmstack.prep.deduplication.lines import RepeatedLines
from lmstack.prep.document import Dropped

MENU = "Home | Products | About us"


def _own(number: int) -> str:
    return f"What only document number {number} says."


def test_a_menu_is_cut_everywhere_and_counted(tmp_path: Path) -> None:
    texts = [f"{MENU}\n{_own(number)}\n\n  {MENU.upper()}" for number in range(5)]
    stage = RepeatedLines(min_documents=5)
    verdicts, contexts = run_stage(stage, [web(texts)[:2], web(texts)[2:]], tmp_path / "run")
    assert [verdict.text for verdict in verdicts.values()] == [_own(number) for number in range(5)]
    assert [context.counts["lines cut"] for context in contexts] == [4, 6]


def test_lines_repeated_in_one_document_count_once(tmp_path: Path) -> None:
    documents = web([f"{MENU}\n" * 9 + _own(1), f"{MENU}\n{_own(2)}"])
    verdicts, _ = run_stage(RepeatedLines(min_documents=3), [documents], tmp_path / "run")
    assert list(verdicts.values()) == documents


def test_short_lines_stay(tmp_path: Path) -> None:
    documents = web([f"}}\n{_own(number)}\n}}" for number in range(30)])
    verdicts, _ = run_stage(RepeatedLines(min_documents=2, min_characters=2), [documents], tmp_path / "run")
    assert list(verdicts.values()) == documents


def test_the_first_copy_of_a_paragraph_is_left(tmp_path: Path) -> None:
    paragraph = "A paragraph that was copied\nfrom page to page."
    texts = [f"{_own(0)}\n\n{paragraph}\n\n{paragraph}", f"{paragraph}\n \n{_own(1)}", f"{_own(2)}\n\n{paragraph}"]
    documents = web(texts)
    stage = RepeatedLines(unit="paragraph", min_documents=2, keep="first")
    verdicts, _ = run_stage(stage, [documents[:1], documents[1:]], tmp_path / "run")
    assert [each.text for each in verdicts.values()] == [f"{_own(0)}\n\n{paragraph}", _own(1), _own(2)]


def test_a_document_of_repeated_lines_only_is_dropped(tmp_path: Path) -> None:
    verdicts, _ = run_stage(RepeatedLines(min_documents=2), [web([MENU, f" {MENU}\n"])], tmp_path / "run")
    assert [isinstance(verdict, Dropped) and verdict.reason for verdict in verdicts.values()] == [
        "only repeated lines"
    ] * 2


@pytest.mark.parametrize("settings", [{"min_documents": 1}, {"min_characters": 0}])
def test_settings_that_would_cut_everything_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        RepeatedLines(**settings)
