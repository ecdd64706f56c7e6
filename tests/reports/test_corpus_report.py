"""The report of a preparation shows every stage, reason, share and example of its summary."""

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from lmstack.reports.corpus_report import corpus_report
from lmstack.reports.funnel import funnel


def amount(documents: int) -> dict[str, int]:
    return {"documents": documents, "bytes": documents * 1_000_000}


def stage(name: str, taken: int, dropped: dict[str, int], **more: Any) -> dict[str, Any]:
    kept = taken - sum(dropped.values())
    tally = {
        "taken": amount(taken), "kept": amount(kept), "changed": amount(0), "seconds": 1800.0,
        "counts": {"masked email": 7},
        "dropped": {reason: amount(number) for reason, number in dropped.items()},
        "languages": {"en": amount(kept)}, "lengths": {"10": kept},
        "examples": {what: [{"source": "web", "id": "1f", "text": f"text of {what}"}] for what in ("kept", *dropped)},
    }  # fmt: skip
    return {"name": name, "wall_seconds": 60.0, "tally": tally, "by_source": {"web": tally}, **more}


@pytest.fixture
def report() -> str:
    duplicates = {"clusters": 2, "documents": 5, "sizes": {"2": 1, "3": 1}, "largest": [["3a", 3], ["2b", 2]]}
    contamination = {"quiz": {"items": 300, "items_hit": 20, "documents": 21}}
    stages = [
        stage("collect", 100, {}),
        stage("rules", 100, {"too few words": 9, "<short>": 1}),
        stage("near", 90, {"near duplicate": 3}, clusters=duplicates),
        stage("decontaminate", 87, {"contaminated": 21}, contamination=contamination),
    ]
    tokens = {"tokens": 12_345, "documents": 66}
    corpus = {"sources": {"web": {"train": tokens, "validation": tokens}}}
    return corpus_report("mine", {"stages": stages, "corpus": corpus})


def test_every_part_of_the_summary_is_shown(report: str) -> None:
    headings = re.findall("<h2>(.*?)</h2>", report)
    assert headings[:8] == [
        "What every stage let through", "Stages", "Why documents were dropped", "What else was counted", "Sources",
        "Shares and lengths", "Duplicates", "Evaluation items found",
    ]  # fmt: skip
    assert "100 documents came in (100.0 MB), 66 are left (66.0 MB)" in report
    assert "2 core-hours of work in 4 minutes" in report  # 4 stages of 1800 s and of 60 s
    assert "12,345" in report
    assert "2 clusters of 5 documents" in report
    assert re.search("quiz.*300.*20.*21", report)


def test_reasons_have_examples_and_come_before_what_was_kept(report: str) -> None:
    examples = report[report.index("<h2>rules: examples") :]
    assert examples.index("text of too few words") < examples.index("text of kept")
    assert "<short>" not in report
    assert "&lt;short&gt;" in report


def test_bars_of_a_funnel_are_as_wide_as_what_they_stand_for() -> None:
    root = ET.fromstring(funnel("Documents", [("first", 100.0, []), ("second", 75.0, [("bad", 20.0), ("worse", 5.0)])]))
    widths = [float(bar.attrib["width"]) for bar in root.iter("rect")]
    assert [width / widths[0] for width in widths] == pytest.approx([1, 0.75, 0.2, 0.05], abs=1e-3)
    assert "− 25.0 %" in "".join(root.itertext())
