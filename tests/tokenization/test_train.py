import os
import pydoc_data.topics
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmstack.tokenization import (
    Tokenizer,
    WordSplit,
    byte_tokenizer,
    char_tokenizer,
    train_bpe,
    train_bpe_sizes,
    train_unigram,
)

TEXT = ["low lower lowest newer newest wide wider widest " * 20, "don't DON'T 1234567 a  b\n\n  c"]


def test_the_commonest_pairs_become_tokens_and_never_cross_a_word() -> None:
    tokenizer = train_bpe(TEXT, 275)
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("lowest widest")]
    assert "".join(pieces) == "lowest widest"
    assert " w" in pieces[pieces.index(next(p for p in pieces if p.startswith(" "))) :][0]
    assert all(" " not in piece[1:] for piece in pieces)


def test_text_is_cut_as_gpt4_cuts_it() -> None:
    tokenizer = train_bpe(TEXT, 257)
    cut = tokenizer._backend.pre_tokenizer.pre_tokenize_str("I'm  12345 x_1!\n\n  y")
    words = [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece, _ in cut]
    assert words == ["I", "'m", " ", " ", "123", "45", " x", "_", "1", "!\n\n", " ", " y"]


def test_the_vocabulary_has_the_size_asked_for_bytes_first_and_specials_last() -> None:
    tokenizer = train_bpe(TEXT, 280, special_tokens=("<|endoftext|>", "<|pad|>"))
    assert tokenizer.vocab_size == 280
    assert (tokenizer.eot_id, tokenizer.decode([279])) == (278, "<|pad|>")
    assert tokenizer.byte_lengths[:256].tolist() == [1] * 256


def test_training_gives_the_same_tokenizer_in_another_process_with_other_threads() -> None:
    code = (
        "from lmstack.tokenization import train_bpe; import pydoc_data.topics as t;"
        "print(train_bpe(sorted(t.topics.values())[:30], 700).fingerprint)"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={
                **os.environ,
                "RAYON_NUM_THREADS": threads,
                "TOKENIZERS_PARALLELISM": parallel,
                "PYTHONHASHSEED": threads,
            },
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads, parallel in (("1", "false"), ("2", "true"), ("4", "true"))
    }
    assert len(found) == 1


def test_too_small_a_vocabulary_and_too_little_text_are_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"vocab_size=200 is below 257"):
        train_bpe(TEXT, 200)
    with pytest.raises(ValueError, match=r"vocab_size=5000, but the text is enough for (\d+) tokens only"):
        train_bpe(TEXT, 5000)
    with pytest.raises(ValueError, match="hold no character"):
        char_tokenizer(["", ""])


TOPICS = sorted(pydoc_data.topics.topics.values())
MIXED = [*TEXT, *TOPICS[:2], "天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。" * 99, "def f(x):\n        return x + 1\n" * 9]
UNIGRAM = train_unigram(MIXED, 300)
BPE = train_bpe(MIXED, 300)


@pytest.mark.parametrize("tokenizer", [UNIGRAM, BPE], ids=["unigram", "bpe"])
@given(text=st.text())
@settings(max_examples=200, deadline=None)
def test_every_text_comes_back_as_it_was(tokenizer: Tokenizer, text: str) -> None:
    for probe in (text, text + "<0x41><|endoftext|>▁天" + text):
        ids = tokenizer.encode(probe)
        assert tokenizer.decode(ids) == probe
        assert sum(tokenizer.byte_lengths[ids]) == len(probe.encode())


def test_a_unigram_tokenizer_has_the_size_asked_for_every_byte_and_longer_pieces() -> None:
    assert UNIGRAM.vocab_size == 300
    assert (UNIGRAM.eot_id, UNIGRAM.decode([299])) == (299, "<|endoftext|>")
    assert sorted(UNIGRAM.byte_lengths.tolist())[:257] == [0] + [1] * 256
    assert len(UNIGRAM.encode("lowest newest widest")) < len(byte_tokenizer().encode("lowest newest widest")) / 2
    with pytest.raises(ValueError, match="vocab_size=200 is below 257"):
        train_unigram(TEXT, 200)


def test_a_smaller_vocabulary_cut_from_a_larger_one_is_the_one_that_training_gives() -> None:
    texts = [*TOPICS[2:25], *MIXED]
    sizes = [257, 258, 300, 411, 1000]
    cut = train_bpe_sizes(texts, sizes)
    assert {size: tokenizer.vocab_size for size, tokenizer in cut.items()} == {size: size for size in sizes}
    for size in sizes:
        assert cut[size].fingerprint == train_bpe(texts, size).fingerprint


@given(words=st.lists(st.text("abc", min_size=1, max_size=9), min_size=3, max_size=30), size=st.integers(257, 275))
@settings(max_examples=150, deadline=None)
def test_a_cut_vocabulary_is_the_trained_one_of_any_words(words: list[str], size: int) -> None:
    try:
        cut = train_bpe_sizes(words, [size, 275])[size]
    except ValueError:  # too few pairs for 275
        return
    assert cut.fingerprint == train_bpe(words, size).fingerprint


def test_no_token_crosses_a_word() -> None:
    tokenizer = train_bpe(MIXED, 330, split=WordSplit(max_digits=1, chinese="characters"))
    for piece in (tokenizer.decode([i]) for i in range(tokenizer.vocab_size - 1)):
        assert sum(character.isdigit() for character in piece) <= 1
        assert sum("\u4e00" <= character <= "\u9fff" for character in piece) <= 1
    assert any(len(tokenizer.encode(c)) == 1 for c in "天地")
