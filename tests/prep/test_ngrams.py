"""Words and n-grams: found as a plain reading of the text would, hashed alike in any batch."""

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmstack.prep.document import Document
from lmstack.prep.ngrams import batches, ngram_hashes, split_words

TEXTS = st.lists(st.text(alphabet="abAB é1 .,-\n中文。ｅ\u0301", max_size=30), min_size=1, max_size=5)


def _plain_words(text: str) -> list[str]:
    """The same rule, one character after another."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))
    return re.findall(r"[\u3400-\u9fff]|[a-z0-9]+", plain)


def _words_at(text: str, starts: np.ndarray, stops: np.ndarray) -> list[str]:
    return [text[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]


def test_words_and_their_places() -> None:
    words = split_words(["Hello, World!", "", "你好 world", "..."])
    assert words.offsets.tolist() == [0, 2, 2, 5, 5]
    assert _words_at("Hello, World!", words.starts[:2], words.stops[:2]) == ["Hello", "World"]
    assert _words_at("你好 world", words.starts[2:], words.stops[2:]) == ["你", "好", "world"]
    assert words.hashes[1] == words.hashes[4]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Café", "cafe\u0301"),
        ("ＨＥＬＬＯ", "hello"),
        ("don\u00adt", "dont"),
        ("STRASSE weg", "strasse, weg?"),
        ("他说：“好”", "他说好"),
    ],
)
def test_case_accents_width_and_punctuation_do_not_matter(left: str, right: str) -> None:
    assert split_words([left]).hashes.tolist() == split_words([right]).hashes.tolist()


@pytest.mark.parametrize(("left", "right"), [("ab", "ba"), ("a b", "ab"), ("don't", "dont"), ("x", "x x"), ("1", "l")])
def test_other_words_have_other_hashes(left: str, right: str) -> None:
    assert split_words([left]).hashes.tolist() != split_words([right]).hashes.tolist()


@given(TEXTS)
def test_words_are_those_of_a_plain_reading(texts: list[str]) -> None:
    words = split_words(texts)
    found = [len(_plain_words(text)) for text in texts]
    assert words.num_words().tolist() == found
    alone = [split_words([word]).hashes[0] for text in texts for word in _plain_words(text)]
    assert words.hashes.tolist() == [int(each) for each in alone]


@given(TEXTS, st.integers(1, 4))
def test_ngrams_are_those_of_a_plain_reading(texts: list[str], n: int) -> None:
    hashes, offsets = ngram_hashes(split_words(texts), n)
    known: dict[tuple[str, ...], int] = {}
    for text, start, stop in zip(texts, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        words = _plain_words(text)
        ngrams = [tuple(words[i : i + n]) for i in range(max(len(words) - n + 1, min(len(words), 1)))]
        assert stop - start == len(ngrams)
        for ngram, value in zip(ngrams, hashes[start:stop].tolist(), strict=True):
            assert known.setdefault(ngram, value) == value
    assert len(set(known.values())) == len(known)


def test_hashes_stay_what_they_are() -> None:
    """Files of an interrupted run hold them."""
    words = split_words(["a rose is a rose"])
    assert [f"{value:016x}" for value in words.hashes.tolist()[:3]] == [
        "aeff7d4b5b72ec99",
        "db65c22a15e196b6",
        "3da50a62e83f5172",
    ]
    assert f"{int(ngram_hashes(words, 3)[0][0]):016x}" == "0cf6f4c709207f0f"


def test_no_two_of_many_words_collide() -> None:
    words = [f"{a}{b}" for a in range(300) for b in ("", "x", "y", "zz")]
    hashes = split_words([" ".join(words)]).hashes
    assert len(np.unique(hashes)) == len(set(words))
    assert len(np.unique(hashes >> np.uint64(40))) > 0.99 * len(set(words))


def test_batches_keep_order_and_let_a_long_document_go_alone() -> None:
    documents = [Document("x" * size, str(size), "s") for size in (3, 4, 50, 2, 2)]
    assert [[len(d.text) for d in batch] for batch in batches(documents, 10)] == [[3, 4], [50], [2, 2]]
