"""The article stays, the page around it goes; other formats pass."""

from typing import Literal

import pytest

from lmstack.prep.document import Document, Dropped
from lmstack.prep.extraction import Extract
from lmstack.prep.stage import Context

SENTENCE = "The river rose in the night and by morning the lower fields were under water, as they had been before. "
PAGE = f"""<html><head><title>The flood</title><script>var secret = 1;</script></head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/news">News</a></li></ul></nav>
<article><h1>The flood</h1><p>{SENTENCE * 4}</p><p>{SENTENCE * 3}</p></article>
<footer>Imprint and cookies</footer></body></html>"""


@pytest.mark.parametrize("extractor", ["resiliparse", "trafilatura"])
def test_the_article_is_taken_out(extractor: Literal["resiliparse", "trafilatura"]) -> None:
    verdict = Extract(extractor=extractor).filter(Context())(Document(PAGE, "1", "s", {"format": "html"}))
    assert isinstance(verdict, Document)
    assert verdict.text.count("The river rose") == 7
    assert "secret" not in verdict.text
    assert "<p>" not in verdict.text


@pytest.mark.parametrize("around", ["{}", "<main>{}</main>", "<div><div><div>{}</div></div></div>"])
def test_a_list_in_the_text_stays_however_shallow_the_page(around: str) -> None:
    items = "".join(f"<li>item number {n} of the list</li>" for n in range(4))
    body = around.format(f"<h1>T</h1><p>{SENTENCE * 3}</p><ul>{items}</ul><p>{SENTENCE * 3}</p>")
    page = Document(f"<html><body>{body}</body></html>", "1", "s", {"format": "html"})
    verdict = Extract().filter(Context())(page)
    assert isinstance(verdict, Document)
    assert [f"item number {n} of the list" in verdict.text for n in range(4)] == [True] * 4


def test_other_formats_pass() -> None:
    document = Document("if a < b: print('<p>')", "1", "s", {"format": "code"})
    assert Extract().filter(Context())(document) is document


def test_a_page_without_content_is_dropped() -> None:
    page = Document("<html><body><img src='x.png'></body></html>", "1", "s", {"format": "html"})
    verdict = Extract().filter(Context())(page)
    assert isinstance(verdict, Dropped)
    assert verdict.reason == "no main content"
