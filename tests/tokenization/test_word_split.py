import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from lmstack.tokenization import WordSplit

GPT_4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def cut(text: str, pattern: str) -> list[str]:
    return [word for word, _ in Split(Regex(pattern), behavior="isolated").pre_tokenize_str(text)]


@given(st.text())
def test_the_words_are_the_text(text: str) -> None:
    for split in (WordSplit(), WordSplit(1, "characters")):
        assert "".join(cut(text, split.pattern)) == text


@given(st.text(st.characters(max_codepoint=0x2FF)))
def test_latin_text_is_cut_as_gpt4_cuts_it(text: str) -> None:
    assert cut(text, WordSplit().pattern) == cut(text, GPT_4)


@pytest.mark.parametrize(
    ("split", "text", "words"),
    [
        (WordSplit(), "，我们的iPhone手机。\n好", ["，", "我们的", "iPhone", "手机", "。\n", "好"]),
        (WordSplit(), "说 中文 ok", ["说", " ", "中文", " ok"]),
        (WordSplit(chinese="characters"), "我们a", ["我", "们", "a"]),
        (WordSplit(), "in 1234567", ["in", " ", "123", "456", "7"]),
        (WordSplit(max_digits=1), "x12", ["x", "1", "2"]),
        (WordSplit(), "if x:\n        return", ["if", " x", ":\n", "       ", " return"]),
        (WordSplit(), "a\t\tb", ["a", "\t", "\tb"]),
        (WordSplit(), "cafe\u0301 s", ["cafe\u0301", " s"]),  # a letter keeps its mark
    ],
)
def test_english_chinese_and_code_are_cut_by_hand(split: WordSplit, text: str, words: list[str]) -> None:
    assert cut(text, split.pattern) == words


def test_a_word_has_digits() -> None:
    with pytest.raises(ValueError, match="max_digits=0: must be 1 or more"):
        WordSplit(0)
