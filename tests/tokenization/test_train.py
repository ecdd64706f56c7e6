import os
import subprocess
import sys

import pytest

from lmstack.tokenization import char_tokenizer, train_bpe

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
    with pytest.raises(ValueError, match=r"vocab_size=5000, but the text holds pairs for (\d+) tokens only"):
        train_bpe(TEXT, 5000)
    with pytest.raises(ValueError, match="hold no character"):
        char_tokenizer(["", ""])
