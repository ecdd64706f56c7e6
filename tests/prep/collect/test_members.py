"""Compressed files member by member: whatever is damaged, all whole members are read and the damage is said once."""

import gzip
import io
import random
from typing import get_args

import pytest
import zstandard

from lmstack.prep.collect.members import Compression, Decompressed, MemberEnd, read_members

COMPRESS = {"gzip": gzip.compress, "zstd": zstandard.compress}
both = pytest.mark.parametrize("compression", get_args(Compression))


def members(content: bytes, compression: Compression) -> list[tuple[bytes, MemberEnd]]:
    found, block = [], b""
    for item in read_members(io.BytesIO(content), compression):
        if isinstance(item, bytes):
            block += item
        else:
            found.append((block, item))
            block = b""
    assert not block
    return found


@both
def test_members_are_read_with_their_places(compression: Compression) -> None:
    texts = [random.Random(n).randbytes(size) for n, size in enumerate((0, 5, 9_000, 70_000))]
    packed = [COMPRESS[compression](text) for text in texts]
    found = members(b"".join(packed), compression)
    assert [text for text, _ in found] == texts
    assert [end.offset for _, end in found] == [sum(map(len, packed[:n])) for n in range(4)]
    assert not any(end.error for _, end in found)


@both
def test_a_damaged_member_costs_no_other(compression: Compression) -> None:
    draw = random.Random(1)
    texts = [draw.randbytes(6_000) for _ in range(3)]
    packed = [COMPRESS[compression](text) for text in texts]
    for place in (0, 10, len(packed[1]) // 2):
        broken = packed[1][:place] + b"\xa5\x5a\xa5" + packed[1][place + 3 :]
        found = members(packed[0] + broken + packed[2], compression)
        whole = [text for text, end in found if not end.error]
        errors = [end for _, end in found if end.error]
        # without a checksum, which zstandard leaves out unless told, bytes that stand for themselves cannot be checked
        assert whole in ([texts[0], texts[2]], [texts[0], whole[1], texts[2]])
        assert [end.offset for end in errors] in ([len(packed[0])], [])
        assert errors or compression == "zstd"


@both
@pytest.mark.parametrize("missing", [1, 20, 3_000])
def test_a_file_that_ends_too_early_is_no_whole_file(compression: Compression, missing: int) -> None:
    packed = COMPRESS[compression](random.Random(2).randbytes(6_000))
    ((_, end),) = members(packed[:-missing], compression)
    assert end.error == "the file ends within it"
    with pytest.raises(OSError, match="the file ends within it"):
        io.BufferedReader(Decompressed(io.BytesIO(packed[:-missing]), compression)).read()


@both
def test_all_members_are_one_stream(compression: Compression) -> None:
    texts = [random.Random(n).randbytes(20_000) for n in range(3)]
    raw = io.BytesIO(b"".join(map(COMPRESS[compression], texts)))
    stream = io.BufferedReader(Decompressed(raw, compression))
    assert stream.read(30_000) + stream.read() == b"".join(texts)
    stream.close()
    assert raw.closed


@both
def test_what_is_very_well_compressed_comes_a_little_at_a_time(compression: Compression) -> None:
    packed = COMPRESS[compression](b"y" * (1 << 27))
    sizes = [len(item) for item in read_members(io.BytesIO(packed), compression) if isinstance(item, bytes)]
    assert sum(sizes) == 1 << 27
    assert max(sizes) <= 1 << 25
