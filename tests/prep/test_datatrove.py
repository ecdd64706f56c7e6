"""Blocks of datatrove as stages, and stages as blocks of datatrove."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lmstack.prep.datatrove import DatatroveFilter, as_datatrove_block
from lmstack.prep.deduplication.exact import ExactDuplicates
from lmstack.prep.document import Document, Dropped
from lmstack.prep.privacy import MaskPersonalData
from lmstack.prep.quality.gopher import Gopher
from lmstack.prep.stage import Context, Only


class OtherDocument(SimpleNamespace):
    """As datatrove's: text, id and metadata."""


class Short:
    """As datatrove's filters: True, or False and a reason."""

    def __init__(self, least: int):
        self.least = least

    def filter(self, doc: Any) -> bool | tuple[bool, str]:
        doc.metadata["length"] = len(doc.text)
        return True if len(doc.text) >= self.least else (False, "short")


class Loud:
    """As datatrove's formatters."""

    def format(self, text: str) -> str:
        return text.upper()


@pytest.fixture
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in the place of datatrove, which is an extra that takes minutes to install."""
    data = ModuleType("datatrove.data")
    data.Document = OtherDocument  # type: ignore[attr-defined]
    blocks = ModuleType("blocks")
    blocks.Short, blocks.Loud, blocks.Nothing = Short, Loud, object  # type: ignore[attr-defined]
    for name, module in (("datatrove", ModuleType("datatrove")), ("datatrove.data", data), ("blocks", blocks)):
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("_stand_in")
def test_a_filter_of_datatrove_keeps_and_drops() -> None:
    judge = DatatroveFilter(block="blocks.Short", arguments={"least": 3}).filter(Context())
    kept = judge(Document("long", "1", "s", {"a": 1}))
    assert isinstance(kept, Document)
    assert kept.metadata == {"a": 1, "length": 4}
    dropped = judge(Document("no", "2", "s"))
    assert isinstance(dropped, Dropped)
    assert dropped.reason == "short"


@pytest.mark.usefixtures("_stand_in")
def test_a_formatter_of_datatrove_changes_the_text() -> None:
    verdict = DatatroveFilter(block="blocks.Loud").filter(Context())(Document("a", "1", "s"))
    assert isinstance(verdict, Document)
    assert verdict.text == "A"


@pytest.mark.usefixtures("_stand_in")
@pytest.mark.parametrize("block", ["blocks.Absent", "nowhere.Block", "blocks.Nothing"])
def test_a_block_that_cannot_be_used_is_refused(block: str) -> None:
    with pytest.raises(ValueError, match=block):
        DatatroveFilter(block=block).filter(Context())


def test_a_stage_that_needs_the_whole_corpus_is_no_block() -> None:
    with pytest.raises(ValueError, match="whole corpus"):
        as_datatrove_block(ExactDuplicates())


@pytest.mark.usefixtures("_stand_in")
def test_a_stage_looks_at_what_it_is_for_in_a_pipeline_of_datatrove_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class PipelineStep:
        def stat_update(self, *what: str) -> None: ...

    names = {"total": "total", "dropped": "dropped", "forwarded": "forwarded"}
    contents = {
        "datatrove.pipeline.base": {"PipelineStep": PipelineStep},
        "datatrove.utils.typeshelper": {"StatHints": SimpleNamespace(**names)},
    }
    for name, content in contents.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    gopher = as_datatrove_block(Gopher(only=Only(languages=["en"])))
    others = [OtherDocument(text="short", id=language, metadata={"language": language}) for language in ("en", "zh")]
    assert [other.id for other in gopher.run(iter(others))] == ["zh"]


def test_stages_run_in_a_pipeline_of_datatrove() -> None:
    data = pytest.importorskip("datatrove.data")
    block = as_datatrove_block(MaskPersonalData())
    others = [data.Document(text="mail a@b.org", id="1"), data.Document(text="plain", id="2")]
    assert [other.text for other in block.run(iter(others))] == ["mail [EMAIL]", "plain"]
    gopher = as_datatrove_block(Gopher())
    assert list(gopher.run(iter([data.Document(text="short", id="3")]))) == []
