"""The main content of an HTML page: navigation, advertisements and scripts go, the article stays."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lmstack.prep.document import Document, Dropped, Verdict
from lmstack.prep.stage import Context, Filter, StageSettings


@dataclass(frozen=True, kw_only=True)
class Extract(StageSettings):
    """Takes the text out of documents whose format is HTML; others pass.

    Attributes:
        kind: `extract`.
        extractor: resiliparse is about ten times as fast; trafilatura leaves less navigation in (figures in
            docs/explanation/filters/extract.md).
        min_characters: A page with less content is dropped.
    """

    kind: Literal["extract"] = "extract"
    extractor: Literal["resiliparse", "trafilatura"] = "resiliparse"
    min_characters: int = 1

    def filter(self, context: Context) -> Filter:
        """The function that extracts.

        Args:
            context: Of the partition.
        """
        extract = {"resiliparse": _resiliparse, "trafilatura": _trafilatura}[self.extractor]()

        def judge(document: Document) -> Verdict:
            if document.metadata.get("format") != "html":
                return document
            try:
                text, found = extract(document.text)
            except Exception as error:  # a page that breaks a parser is one page less, and is counted
                return Dropped(document, "extraction failed", f"{type(error).__name__}: {error}")
            context.counts["pages extracted"] += 1
            if len(text.strip()) < max(self.min_characters, 1):
                return Dropped(document, "no main content", f"{len(text.strip())} characters")
            return document.with_text(text).with_metadata(**found)

        return judge


_Extract = Callable[[str], tuple[str, dict[str, str]]]
_LIST_DEPTH = 3
"""resiliparse 2.0 takes a list that is less deep within the body for navigation, and leaves it out."""


def _resiliparse() -> _Extract:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    def extract(page: str) -> tuple[str, dict[str, str]]:
        tree = HTMLTree.parse(page)
        for _ in range(_LIST_DEPTH if tree.body else 0):
            _nest(tree)
        text = extract_plain_text(tree, main_content=True, alt_texts=False, preserve_formatting=True)
        return text, {"title": tree.title} if tree.title else {}

    return extract


def _nest(tree: Any) -> None:
    """Put the content of a page's body into one more element."""
    content = list(tree.body.child_nodes)
    inner = tree.create_element("div")
    for node in content:
        inner.append_child(node)
    tree.body.append_child(inner)


def _trafilatura() -> _Extract:
    import trafilatura

    def extract(page: str) -> tuple[str, dict[str, str]]:
        text = trafilatura.extract(page, include_comments=False, include_tables=True, deduplicate=False)
        return text or "", {}

    return extract
