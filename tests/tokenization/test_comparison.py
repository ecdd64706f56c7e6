import math
from collections import Counter

import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from lmstack.tokenization import Tokenizer, byte_tokenizer, train_bpe
from lmstack.tokenization.comparison import (
    RARE_COUNT,
    compare_tokenizers,
    language_of,
    renyi_efficiency,
    vocabulary_use,
)

TEXTS = {"en": ["one two", "é, and  more\n"], "zh": ["我们 ok 好。"], "nothing": []}


def test_the_counts_are_those_by_hand() -> None:
    figures = compare_tokenizers({"bytes": byte_tokenizer()}, TEXTS)["bytes"]
    en, zh = figures.sources["en"], figures.sources["zh"]
    assert (en.documents, en.bytes, en.characters, en.words, en.tokens) == (2, 21, 20, 5, 21)
    assert (zh.documents, zh.bytes, zh.characters, zh.words, zh.tokens) == (1, 16, 8, 5, 16)  # 我 们 ok 好 。
    assert (en.bytes_per_token, zh.characters_per_token, zh.fertility) == (1.0, 0.5, 3.2)
    assert figures.sources["nothing"].fertility == figures.sources["nothing"].bytes_per_token == 0.0
    assert {name: counts.documents for name, counts in figures.languages.items()} == {"other": 2, "chinese": 1}


def test_all_tokenizers_see_the_same_text_and_their_tokens_are_counted() -> None:
    text = "the cat and the hat " * 40
    tokenizers = {"bytes": byte_tokenizer(), "pairs": train_bpe([text], 262)}
    figures = compare_tokenizers(tokenizers, {"a": iter([text, text])})
    for name, tokenizer in tokenizers.items():
        expected = Counter(token for _ in range(2) for token in tokenizer.encode(text))
        assert dict(enumerate(figures[name].token_counts)) == {i: expected[i] for i in range(tokenizer.vocab_size)}
        assert figures[name].sources["a"].tokens == sum(expected.values())
        assert figures[name].sources["a"].bytes == 2 * len(text)


def test_renyi_efficiency_is_its_definition() -> None:
    counts = [5, 1, 0, 2]
    entropy = math.log(sum((c / 8) ** 2.5 for c in counts)) / (1 - 2.5)
    assert renyi_efficiency(np.array(counts)) == pytest.approx(entropy / math.log(4))
    assert renyi_efficiency(np.array([7, 7, 7])) == pytest.approx(1)
    assert renyi_efficiency(np.array([9, 0])) == pytest.approx(0)
    assert renyi_efficiency(np.array([0, 0])) == 0
    near_one = renyi_efficiency(np.array(counts), order=1 + 1e-6)  # the limit is Shannon's entropy
    assert near_one == pytest.approx(-sum(c / 8 * math.log(c / 8) for c in counts if c) / math.log(4), abs=1e-5)


def test_tokens_of_no_use_are_named_with_the_reason() -> None:
    vocabulary = {token: i for i, token in enumerate("abcdef")} | {"ab": 6, "abc": 7, "bc": 8, "de": 9, "fd": 10}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[("a", "b"), ("ab", "c"), ("d", "e")]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken("<e>", special=True, normalized=False)])
    tokenizer = Tokenizer(backend.to_str(), "<e>")
    figures = compare_tokenizers({"t": tokenizer}, {"a": ["abc " * RARE_COUNT + "d"]})["t"]
    use = vocabulary_use(tokenizer, figures.token_counts)
    assert use.swallowed == ["a", "b", "c", "e", "ab"]
    assert use.unreachable == ["bc", "fd"]  # no merge makes them
    assert use.other_unseen == ["f", "de"]
    assert (use.unseen, use.rare) == (9, 1)  # "d" came once; the special token is not counted


def test_parts_of_characters_are_never_called_unreachable() -> None:
    tokenizer = train_bpe(["好" * 50 + "我" * 50], 259)
    use = vocabulary_use(tokenizer, np.zeros(tokenizer.vocab_size, dtype=np.int64))
    assert use.unreachable == []
    assert use.unseen == 258


@pytest.mark.parametrize(
    ("text", "language"),
    [("我们 and", "chinese"), ("我 and others", "other"), ("", "other"), ("。，", "other"), ("我   ", "chinese")],
)
def test_a_document_is_chinese_where_three_in_ten_characters_are(text: str, language: str) -> None:
    assert language_of(text) == language
