"""Bodies of responses: chunks joined, packed ones unpacked, and what is neither left alone."""

import gzip
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmstack.prep.collect.payload import can_unpack, joined_chunks, unpacked


@given(st.lists(st.binary(min_size=1, max_size=40)))
def test_chunks_are_joined(parts: list[bytes]) -> None:
    chunked = b"".join(b"%x;name=value\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    assert joined_chunks(chunked) == b"".join(parts)


def test_a_chunk_that_is_cut_off_gives_what_there_is() -> None:
    assert joined_chunks(b"3\r\nabc\r\n9\r\ndef") == b"abcdef"
    assert joined_chunks(b"<p>no chunk</p>") == b"<p>no chunk</p>"


@pytest.mark.parametrize("size", [b"-6", b"-fff", b"+1", b"0x1", b"1_0", b"", b"g"])
def test_what_is_no_size_ends_the_chunks(size: bytes) -> None:
    assert joined_chunks(b"2\r\nab\r\n" + size + b"\r\ncd") == b"ab" + size + b"\r\ncd"


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_packed_bodies_are_unpacked_up_to_the_limit(pack: Callable[[bytes], bytes]) -> None:
    assert unpacked(pack(b"a" * 1000), "", "gzip", limit=10_000) == b"a" * 1000
    assert unpacked(pack(b"a" * 1000), "", "gzip", limit=10) == b"a" * 10
    assert unpacked(b"plain", "", "gzip", limit=10) == b"plain"
    assert unpacked(b"x", "", "identity", limit=10) == b"x"


def test_an_encoding_that_cannot_be_undone_is_known() -> None:
    assert [can_unpack(name) for name in ("", "identity", "GZIP", "deflate", "br", "zstd")] == [True] * 4 + [False] * 2
