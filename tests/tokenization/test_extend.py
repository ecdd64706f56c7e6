from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmstack.tokenization import Tokenizer, train_bpe, train_unigram
from lmstack.tokenization.extend import extend_from_text, extend_with_tokens, old_pieces

OLD = train_bpe(["the cat sat on the mat, the hat " * 30], 270)
DOMAIN = ["phosphorylation of the kinase, kinase phosphatase 激酶磷酸化 " * 20]
LEARNT = extend_from_text(OLD, DOMAIN, 25)
GIVEN = extend_with_tokens(OLD, ["kinase", "激酶", "x-ray"])


@pytest.mark.parametrize("new", [LEARNT, GIVEN], ids=["learnt", "given"])
@given(text=st.text() | st.text("kinase 激酶x-ray,tphlo"))
@settings(max_examples=200, deadline=None)
def test_every_text_comes_back_as_it_was_and_old_ids_stay(new: Tokenizer, text: str) -> None:
    assert new.extends(OLD)
    assert new.eot_id == OLD.eot_id
    assert new.decode(new.encode(text)) == text
    assert new.decode(OLD.encode(text)) == text
    assert sum(new.byte_lengths[new.encode(text)]) == len(text.encode())


def test_what_is_learnt_are_the_commonest_pairs_of_old_tokens() -> None:
    assert LEARNT.vocab_size == OLD.vocab_size + 25
    assert len(LEARNT.encode(DOMAIN[0])) < 0.6 * len(OLD.encode(DOMAIN[0]))
    words = [word for text in DOMAIN for word in OLD.cut_words(text)]
    for index in range(OLD.vocab_size, LEARNT.vocab_size):  # the oracle: count all pairs anew for every merge
        pairs: dict[tuple[str, str], int] = {}
        for word in words:
            for pair in pairwise(word):
                pairs[pair] = pairs.get(pair, 0) + 1
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        assert LEARNT.text_entries()[index] == "".join(best)
        merged = []
        for word in words:
            rest, joined = list(word), []
            while rest:
                joined.append("".join(rest[:2]) if tuple(rest[:2]) == best else rest[0])
                del rest[: 2 if tuple(rest[:2]) == best else 1]
            merged.append(tuple(joined))
        words = merged
    assert [word for text in DOMAIN for word in LEARNT.cut_words(text)] == words


def test_text_without_the_new_tokens_is_cut_as_before() -> None:
    for text in ("the cat sat", "hat on mat\n", "kinases", "xx-ray"):
        assert GIVEN.encode(text) == OLD.encode(text)
    assert len(GIVEN.encode("激酶")) == 1
    assert GIVEN.decode([GIVEN.encode("a kinase.")[2]]) == "kinase"


@pytest.mark.parametrize("new", [LEARNT, GIVEN], ids=["learnt", "given"])
def test_the_pieces_of_a_new_token_are_what_its_text_was_cut_into(new: Tokenizer) -> None:
    pieces = old_pieces(OLD, new)
    assert sorted(pieces) == list(range(OLD.vocab_size, new.vocab_size))
    for index, parts in pieces.items():
        text = new.decode([index])
        assert OLD.decode(parts) == text
        assert max(parts) < OLD.vocab_size
        if "\ufffd" not in text:
            assert parts == OLD.encode(text)
    assert np.array_equal(
        [sum(OLD.byte_lengths[pieces[i]]) for i in sorted(pieces)], new.byte_lengths[OLD.vocab_size :]
    )


def test_special_tokens_have_no_pieces() -> None:
    assert old_pieces(OLD, OLD.with_special_tokens(["<|im_start|>"])) == {}


def test_a_tokenizer_can_be_extended_twice_and_saved_between(tmp_path) -> None:
    LEARNT.save(tmp_path)
    twice = extend_from_text(Tokenizer.load(tmp_path), ["zebra zebra"] * 9, 3)
    assert twice.extends(LEARNT)
    assert twice.decode(twice.encode("a zebra kinase")) == "a zebra kinase"
    assert extend_with_tokens(GIVEN, ["kinase"]).vocab_size == GIVEN.vocab_size


def test_what_cannot_be_added_is_refused() -> None:
    with pytest.raises(ValueError, match="'é' as a token of its own would be decoded to"):
        extend_with_tokens(OLD, ["é"])
    with pytest.raises(ValueError, match="it is special already"):
        extend_with_tokens(OLD, ["<|endoftext|>"])
    with pytest.raises(ValueError, match="it is empty"):
        extend_with_tokens(OLD, [""])
    with pytest.raises(ValueError, match="has pairs for 3 new tokens only"):
        extend_from_text(OLD, ["zyxw"], 50)
    unigram = train_unigram(["the cat sat on the mat, the hat " * 30], 257)
    with pytest.raises(ValueError, match="is Unigram, and only BPE can be trained on"):
        extend_from_text(unigram, DOMAIN, 5)
    assert extend_with_tokens(unigram, ["kinase"]).extends(unigram)
    with pytest.raises(ValueError, match="gives old tokens other ids"):
        old_pieces(OLD, train_bpe(DOMAIN, 280))
