"""Evaluation items are found in whatever dress, and nothing else is."""

import json
from pathlib import Path

import pytest

from corpus_stages import run_stage, web
from lmstack.prep.decontamination import Decontamination
from lmstack.prep.document import Document, Dropped, Verdict
from lmstack.prep.evaluation_sets import EvaluationSet

LONG = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
SHORT = "Who wrote the opera about a magic flute?"
CHINESE = "小明有十二个苹果，他把其中的三分之一给了小红，还剩几个？"
TINY = "True or false?"


def _stage(folder: Path, **settings: object) -> Decontamination:
    records = [{"question": text} for text in (LONG, SHORT, CHINESE, TINY)]
    (folder / "test.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return Decontamination(benchmarks={"quiz": EvaluationSet(str(folder / "test.jsonl"), ["question"])}, **settings)


def _judge(text: str, folder: Path, **settings: object) -> Verdict:
    verdicts, _ = run_stage(_stage(folder, **settings), [web([text])], folder / "run")
    return verdicts["0000"]


@pytest.mark.parametrize(
    ("text", "item"),
    [
        (f"Before. {LONG} After.", 0),
        (LONG.upper().replace(" ", "  \n").replace(",", ";"), 0),
        ("x " * 50 + "friends in April and then she sold half as many clips in May" + " y" * 50, 0),
        (f"Q: {SHORT}", 1),
        ("... who wrote the Opera, about a “magic flute” ...", 1),
        (SHORT, 1),
        (f"题目：{CHINESE}答案", 2),
        ("个苹果他把其中的三分之一给了", 2),
        ("苹果 他 把 其中 的 三分之一 给 了 小红", 2),
    ],
)
def test_items_are_found(text: str, item: int, tmp_path: Path) -> None:
    verdict = _judge(text, tmp_path)
    assert isinstance(verdict, Dropped)
    assert (verdict.reason, verdict.detail) == ("contaminated", f"by quiz/test.jsonl:{item}")


@pytest.mark.parametrize(
    "text",
    [
        "friends in April, and then she sold half as many clips",  # 11 of its words in a row
        "friends in April, and then she sold half as many pens in May.",
        "Who wrote the opera about a magic?",
        "wrote the opera about a magic flute, and other works",
        "他把其中的三分之一给了",
        TINY,
        "",
    ],
)
def test_less_than_an_item_is_not_contaminated(text: str, tmp_path: Path) -> None:
    assert isinstance(_judge(text, tmp_path), Document)


def test_items_are_cut_out(tmp_path: Path) -> None:
    text = f"Before.\n{LONG} Between.\n- {SHORT}\nAfter 你好。"
    verdict = _judge(text, tmp_path, action="cut")
    assert isinstance(verdict, Document)
    assert verdict.text == "Before.\n. Between.\n-\n?\nAfter 你好。"
    assert verdict.metadata == {"contaminated": "quiz/test.jsonl:0, quiz/test.jsonl:1"}


def test_a_document_that_is_an_item_is_dropped_by_cutting_too(tmp_path: Path) -> None:
    assert isinstance(_judge(SHORT.removesuffix("?"), tmp_path, action="cut"), Dropped)


def test_the_report_tells_what_was_hit(tmp_path: Path) -> None:
    partitions = [web([LONG, "clean", f"{LONG} {CHINESE}"]), [Document(CHINESE, "last", "web")], []]
    _, contexts = run_stage(_stage(tmp_path), partitions, tmp_path / "run")
    report = json.loads((tmp_path / "run/contamination.json").read_text())
    assert report == {
        "quiz": {
            "items": 4,
            "items_too_short": 1,
            "items_hit": 2,
            "documents": 3,
            "hits": {
                "test.jsonl:0": {"documents": 2, "example": "0000"},
                "test.jsonl:2": {"documents": 2, "example": "0002"},
            },
        }
    }
    assert len(contexts) == 3


def test_words_do_not_join_across_documents(tmp_path: Path) -> None:
    half = len(LONG) // 2
    verdicts, _ = run_stage(_stage(tmp_path), [web([LONG[:half], LONG[half:]])], tmp_path / "run")
    assert all(isinstance(verdict, Document) for verdict in verdicts.values())


def test_settings_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="min_words=14"):
        _stage(tmp_path, min_words=14)
    with pytest.raises(ValueError, match="No benchmarks"):
        Decontamination(benchmarks={})


def test_a_benchmark_without_items_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    stage = Decontamination(benchmarks={"quiz": EvaluationSet(str(tmp_path / "empty.jsonl"), ["question"])})
    with pytest.raises(ValueError, match="'quiz' holds no items"):
        run_stage(stage, [web(["text"])], tmp_path / "run")
