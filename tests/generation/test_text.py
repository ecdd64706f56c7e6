"""Text that appears token by token, against decoding everything at once."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers

from lmstack.generation.text import TextStream
from lmstack.tokenization import Tokenizer, byte_tokenizer

BYTES = byte_tokenizer()
PROMPT = BYTES.encode("def é")


def stream_of(ids: list[int], stop_strings: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream, pieces = TextStream(BYTES, PROMPT, stop_strings), []
    for token in ids:
        stream.push(token)
        pieces.append(stream.take())
        if stream.stopped:
            break
    stream.finish()
    return [*pieces, stream.take()], stream


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 255) | st.sampled_from([0xF0, 0x9F, 0x98, 0x80, 0xC3, 0xA9, 0x20]), max_size=24))
def test_pieces_join_to_what_decoding_everything_at_once_gives_for_any_bytes(ids: list[int]) -> None:
    pieces, stream = stream_of(ids)
    assert "".join(pieces) == stream.text == bytes(ids).decode(errors="replace")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=12))
def test_no_piece_of_valid_text_holds_a_broken_character(text: str) -> None:
    pieces, _ = stream_of(BYTES.encode(text))
    assert "".join(pieces) == text
    assert sum(piece.count("\ufffd") for piece in pieces) == text.count("\ufffd")


def test_a_character_appears_with_its_last_byte() -> None:
    pieces, _ = stream_of(BYTES.encode("a😀b"))
    assert pieces == ["a", "", "", "", "😀", "b", ""]


def test_a_character_that_never_ends_appears_as_replacement_at_the_end() -> None:
    pieces, _ = stream_of(BYTES.encode("a😀")[:-1])
    assert pieces == ["a", "", "", "", "\ufffd"]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    text=st.text("ab\nç", max_size=20),
    stops=st.lists(st.text("ab\nç", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple),
)
def test_text_ends_before_the_stop_string_that_is_complete_first(text: str, stops: tuple[str, ...]) -> None:
    pieces, stream = stream_of(BYTES.encode(text), stops)
    expected, stopped = text, False
    for end in range(len(text) + 1):
        found = [at for stop in stops if (at := text[:end].find(stop)) >= 0]
        if found:
            expected, stopped = text[: min(found)], True
            break
    assert (stream.text, stream.stopped) == (expected, stopped)
    assert "".join(pieces) == expected  # nothing of the stop string was shown before it was known to be one


def test_what_may_begin_a_stop_string_is_held_back_until_it_does_not() -> None:
    pieces, _ = stream_of(BYTES.encode("x\n\ny\n"), ("\n\n\n",))
    assert pieces == ["x", "", "", "\n\ny", "", "\n"]


def test_a_tokenizer_that_drops_a_leading_space_keeps_the_space_between_prompt_and_completion() -> None:
    backend = Backend(models.WordLevel({"▁Hello": 0, "▁world": 1, "!": 2}, unk_token="!"))
    backend.normalizer = normalizers.Prepend("▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = Tokenizer(backend.to_str(), None)
    stream = TextStream(tokenizer, [0])
    for token in (1, 2, 1):
        stream.push(token)
    assert stream.text == " world! world"


@pytest.mark.parametrize("stop", [(), ("zz",)])
def test_nothing_is_decoded_twice_from_the_start(stop: tuple[str, ...]) -> None:
    lengths = []

    class Counting(Tokenizer):
        def decode(self, ids, skip_special=False):
            lengths.append(len(ids))
            return super().decode(ids, skip_special)

    stream = TextStream(Counting(**BYTES.__getstate__()), PROMPT, stop)
    for token in BYTES.encode("abcdefgh" * 50):
        stream.push(token)
    assert max(lengths) <= 8
