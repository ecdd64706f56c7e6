"""Heuristic filters on documents made by hand, each just inside and just outside a threshold."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lmstack.prep.document import Document, Dropped
from lmstack.prep.quality.c4 import C4
from lmstack.prep.quality.code import Code
from lmstack.prep.quality.fineweb import FineWeb
from lmstack.prep.quality.gopher import STOP_WORDS, Gopher
from lmstack.prep.quality.repetition import Repetition
from lmstack.prep.quality.word_list import WordList
from lmstack.prep.stage import Context, Stage

PROSE = (
    "The river rose in the night and by morning the lower fields were under water, as they had been before. "
    "Nobody who lives with a river trusts it, but people stay, because the soil that floods bring is worth the work. "
    "An old farmer told us that his house has three marks on its wall, one for each time that he had to leave. "
)
CHINESE = (
    "河水在夜里上涨，到了早晨，低处的田地已经被淹没，就像从前一样。"
    "住在河边的人都不相信它，但是他们留了下来，因为洪水带来的土壤值得这样的辛劳。"
)


def reason(stage: Stage, text: str) -> str | None:
    verdict = stage.filter(Context())(Document(text, "1", "s"))
    return verdict.reason if isinstance(verdict, Dropped) else None


def words(number: int, word: Callable[[int], str] = lambda n: f"word{n}x") -> str:
    return "the of " + " ".join(word(n) for n in range(number - 2))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PROSE, None),
        (words(49), "too few words"),
        (words(50), None),
        (words(100_001, lambda n: "word"), "too many words"),
        (words(60, lambda n: "a"), "words too short"),
        (words(60, lambda n: "incomprehensibly"), "words too long"),
        (words(60) + " #" * 7, "too many hash signs"),
        (words(60) + "..." * 7, "too many ellipses"),
        ("\n".join(f"- the second item of list{n}" for n in range(20)), "bullet lines"),
        ("the line of words is cut …\n" * 4 + "line of the words\n" * 9, "lines that end in an ellipsis"),
        ("the of " + "word " * 40 + "1234 " * 12, "too few alphabetic words"),
        ("Word " * 60, "too few stop words"),
        ("The word of " * 20, None),
    ],
)  # fmt: skip
def test_gopher(text: str, expected: str | None) -> None:
    assert reason(Gopher(), text) == expected


def test_gopher_takes_english_in_capitals_for_english() -> None:
    assert reason(Gopher(), PROSE.upper()) is None


def test_gopher_counts_chinese_in_characters() -> None:
    chinese = Gopher(unit="characters", min_units=50, min_alphabetic=0.6, max_punctuation=0.4)
    assert reason(Gopher(), CHINESE) == "too few words"
    assert reason(chinese, CHINESE) is None
    assert reason(chinese, CHINESE[:45]) == "too few characters"
    assert reason(chinese, "字" * 60) == "too few stop words"
    assert reason(chinese, "的是" * 30 + "，" * 50) in ("too few alphabetic characters", "too much punctuation")


def naive_duplicate_share(text: str, n: int) -> float:
    """Straight from the definition: mark each word of every n-gram that occurred before."""
    units = text.split()
    seen: set[tuple[str, ...]] = set()
    marked: set[int] = set()
    for start in range(len(units) - n + 1):
        gram = tuple(units[start : start + n])
        if gram in seen:
            marked |= set(range(start, start + n))
        seen.add(gram)
    return sum(len(units[place]) for place in marked) / sum(map(len, units))


@pytest.mark.parametrize("n", [5, 7, 10])
def test_shares_of_duplicate_ngrams_agree_with_the_definition(n: int) -> None:
    from lmstack.prep.quality.repetition import _numbered, duplicate_ngram_share

    text = words(40) + " " + words(25) + " " + PROSE + words(33)
    share = duplicate_ngram_share(*_numbered(text.split()), n)
    assert share == pytest.approx(naive_duplicate_share(text, n), abs=1e-12)
    assert 0.1 < share < 0.9


def test_the_share_of_the_top_ngram_is_that_of_the_paper() -> None:
    from lmstack.prep.quality.repetition import _numbered, top_share

    ids, lengths = _numbered(["aa", "b", "aa", "b", "cccc", "aa", "b"])
    assert top_share(ids, lengths, 2) == pytest.approx(9 / 13)  # "aa b" three times, 3 characters each, of 13
    assert top_share(*_numbered(["a", "b", "c"]), 2) == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PROSE, None),
        ("\n".join([*(f"line number {n} is its own" for n in range(6)), *["the same"] * 5]), "duplicate lines"),
        ("\n\n".join(["a paragraph that comes again and again"] * 2 + ["other one"]), "duplicate lines"),
        (" ".join(["click here"] * 3 + [f"w{n}" for n in range(10)]), "top 2-gram"),
        (PROSE + PROSE, "duplicate 5-grams"),
    ],
)
def test_repetition(text: str, expected: str | None) -> None:
    assert reason(Repetition(), text) == expected


def test_c4_keeps_lines_that_are_sentences() -> None:
    page = "Menu\nHome | About\n" + "\n".join(f"This is sentence number {n}, which has an end." for n in range(5))
    page += "\nPlease enable Javascript to see this page.\nRead our privacy policy before you go on.\nToo short."
    verdict = C4().filter(Context())(Document(page + "\nAs shown [12] there is a citation.", "1", "s"))
    assert isinstance(verdict, Document)
    expected = [f"This is sentence number {n}, which has an end." for n in range(5)]
    assert verdict.text.split("\n") == [*expected, "As shown  there is a citation."]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One sentence here. And two of them.", "too few sentences"),
        (PROSE + "Lorem ipsum dolor.", "lorem ipsum"),
        (PROSE + "function() { return }.", "curly bracket"),
        (PROSE, None),
    ],
)
def test_c4_drops_pages(text: str, expected: str | None) -> None:
    assert reason(C4(), text) == expected


def test_c4_counts_chinese_sentences_and_characters() -> None:
    assert reason(C4(unit="characters", min_sentences=2), CHINESE) is None
    assert reason(C4(unit="characters"), CHINESE) == "too few sentences"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PROSE, None),
        ("\n".join(f"this line number {n} has no end and goes on" for n in range(9)), "lines without punctuation"),
        ("\n".join(["Short one."] * 0 + [f"Short line {n}." for n in range(9)]), "short lines"),
        ("A line that is long enough for all of this, surely.\n" * 4 + PROSE, "characters in duplicate lines"),
        ("x" * 40 + ".\n" + "\n".join(f"{'y' * 40}{n}." for n in range(9)), "line breaks"),
    ],
)  # fmt: skip
def test_fineweb(text: str, expected: str | None) -> None:
    assert reason(FineWeb(), text) == expected


CODE = "".join(f"def function_{n}(argument):\n    return argument + {n}\n" for n in range(5))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CODE, None),
        ("x = 1\n", "too few lines of code"),
        ("# This file was automatically generated, do not edit.\n" + CODE, "generated code"),
        (CODE + "x = '" + "a b" * 400 + "'\n", "a very long line"),
        ("\n".join(["value = " + "some_name + " * 15 + "1"] * 5), "long lines"),
        ("\n".join(["{}()[];,.<>!=+-*/ x"] * 5), "too few letters"),
        ("\n".join(f"{n} + {n} = {2 * n}" for n in range(9)), "too few letters"),
        (CODE + "key = '" + "\n".join(["QUJD" * 16] * 16) + "'\n", "encoded data"),
        (CODE + "key = '" + "\n".join(["QUJD" * 16] * 15) + "'\n", "much encoded data"),
        (CODE * 5 + "key = '" + "\n".join(["QUJD" * 16] * 15) + "'\n", None),
        (CODE + "data = {\n" + ("0xab," * 41 + "\n") * 6 + "}\n", "much encoded data"),
        (CODE + "data = {" + "0xab," * 7 + "}\n", None),
        (CODE + "text = '" + "\\u4e2d" * 171 + "'\n", "a very long line"),
        (CODE + "text = '" + "\\u4e2d" * 100 + "'\n", "much encoded data"),
        ("import io\n" * 5 + "# This file is generated.\n" + CODE, None),
        ("# events that were generated by the user\n" + CODE, None),
    ],
)
def test_code(text: str, expected: str | None) -> None:
    assert reason(Code(), text) == expected


def test_words_of_a_list_are_whole_words_and_chinese_ones_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("# bad words\nass\nbad phrase\n赌博\n", encoding="utf-8")
    stage = WordList(file=str(file))
    assert reason(stage, "The class passes the assessment.") is None
    assert reason(stage, "What an ASS he is.") == "words of the list"
    assert reason(stage, "That is a bad phrase.") == "words of the list"
    assert reason(stage, "这里有赌博网站") == "words of the list"
    assert reason(WordList(file=str(file), max_share=0.5), "What an ass he is.") is None


def test_a_word_list_that_is_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# nothing\n")
    with pytest.raises(ValueError, match="is empty"):
        WordList(file=str(tmp_path / "list.txt")).filter(Context())


def test_thresholds_are_the_published_ones() -> None:
    """By the papers' text: arXiv:2112.11446 A.1.1, 1910.10683 2.2, 2406.17557 3.6, 2402.19173 2.1."""
    gopher = Gopher()
    assert (gopher.min_units, gopher.max_units, gopher.min_mean_length, gopher.max_mean_length) == (50, 100_000, 3, 10)
    assert (gopher.max_symbols, gopher.max_bullet_lines, gopher.max_ellipsis_lines) == (0.1, 0.9, 0.3)
    assert (gopher.min_alphabetic, gopher.min_stop_words, gopher.max_punctuation) == (0.8, 2, 1)
    assert {"the", "be", "to", "of", "and", "that", "have", "with"} == STOP_WORDS
    repetition = Repetition()
    assert (repetition.max_duplicate_lines, repetition.max_duplicate_line_characters) == (0.30, 0.20)
    assert (repetition.max_duplicate_paragraphs, repetition.max_duplicate_paragraph_characters) == (0.30, 0.20)
    assert repetition.top == {2: 0.20, 3: 0.18, 4: 0.16}
    assert repetition.duplicate == {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    c4 = C4()
    assert (c4.min_sentences, c4.min_units_per_line, c4.max_word_length) == (3, 5, 1000)
    assert c4.lines_end_in_punctuation
    fineweb = FineWeb()
    assert (fineweb.min_punctuated_lines, fineweb.max_short_lines, fineweb.short_line) == (0.12, 0.67, 30)
    assert fineweb.max_line_breaks == 0.3
    assert fineweb.max_duplicate_line_characters == 0.01  # of the filter that was used; the paper's text says 0.1
    code = Code()
    assert (code.max_mean_line, code.max_line, code.min_alphabetic) == (100, 1000, 0.25)
    assert (code.max_encoded_run, code.max_encoded) == (1024, 0.5)
