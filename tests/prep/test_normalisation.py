"""Each step on text made by hand; text that is right stays as it is."""

from collections import Counter

import pytest

from lmstack.prep.document import Document, Dropped
from lmstack.prep.normalisation import Normalise, StepName, remove_markup
from lmstack.prep.stage import Context


def normalised(text: str, *steps: StepName) -> str:
    verdict = Normalise(steps=list(steps)).filter(Context())(Document(text, "1", "s"))
    assert isinstance(verdict, Document)
    return verdict.text


@pytest.mark.parametrize(
    ("step", "text", "expected"),
    [
        ("mojibake", "plain\nThe cafÃ© isnâ€™t open\n正常的中文", "plain\nThe café isn’t open\n正常的中文"),
        ("entities", "Tom &amp; Jerry &lt;3", "Tom & Jerry <3"),
        ("markup", "a<br/>b <p class='x'>c</p> if x < y and y > z", "ab c if x < y and y > z"),
        ("nfc", "e\u0301", "é"),
        ("nfkc", "ﬁne Ａ１", "fine A1"),
        ("control_characters", "a\x00b\u200bc\ufeffd\te\n", "abcd\te\n"),
        ("whitespace", "a\u00a0b  \r\nc\r\n\r\n\r\n\r\nd", "a b\nc\n\nd"),
        ("whitespace", "    indented  code\n\tstays", "    indented  code\n\tstays"),
        ("simplified_chinese", "漢語與電腦", "汉语与电脑"),
        ("emoji_names", "good 👍", "good :thumbs_up:"),
    ],
)
def test_a_step_does_what_it_is_named_for(step: StepName, text: str, expected: str) -> None:
    assert normalised(text, step) == expected
    assert normalised(expected, step) == expected


@pytest.mark.parametrize("text", ["naïve façade", "“quoted” — dash", "中文标点，没有问题。", "Ünïcödé"])
def test_good_text_is_no_mojibake(text: str) -> None:
    assert normalised(text, "mojibake") == text


def test_scripts_and_comments_go_with_what_is_in_them() -> None:
    assert remove_markup("a<script>if (1<2) {}</script>b<!-- c -->d") == "abd"


def test_what_changed_is_counted_and_what_is_left_empty_is_dropped() -> None:
    counts: Counter[str] = Counter()
    judge = Normalise().filter(Context(counts=counts))
    judge(Document("a\u00a0b", "1", "s"))
    judge(Document("fine", "2", "s"))
    assert counts == {"changed by whitespace": 1}
    assert isinstance(judge(Document("\u200b\x00", "3", "s")), Dropped)


def test_two_normal_forms_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="at most"):
        Normalise(steps=["nfc", "nfkc"])
