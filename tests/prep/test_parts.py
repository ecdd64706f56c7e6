"""Parts between separators: every part once, however the file is cut; long ones are passed over."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmstack.prep import parts as module
from lmstack.prep.parts import TooLong, parts, split


@given(st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"")), max_size=12), st.integers(1, 9))
def test_stretches_side_by_side_give_every_part_once(lines: list[bytes], size: int) -> None:
    content = b"\n".join(lines)
    whole = list(split(io.BytesIO(content), 0, b"\n"))
    assert [part for _, part in whole] == content.split(b"\n")
    cut = [
        part
        for start in range(0, max(len(content), 1), size)
        for part in parts(io.BytesIO(content), start, min(start + size, max(len(content), 1)), b"\n")
    ]
    assert cut == [(offset, part) for offset, part in whole if offset < max(len(content), 1)]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=10), st.integers(1, 20), st.integers(1, 8))
def test_long_parts_are_cut_and_what_follows_is_whole(lengths: list[int], limit: int, block: int) -> None:
    content = b"--".join(b"x" * length for length in lengths)
    before, module.BLOCK_BYTES = module.BLOCK_BYTES, block
    try:
        found = list(split(io.BytesIO(content), 0, b"--", limit))
    finally:
        module.BLOCK_BYTES = before
    assert len(found) == len(lengths)
    offset = 0
    for length, (position, part) in zip(lengths, found, strict=True):
        assert position == offset
        assert isinstance(part, TooLong) == (length > limit)
        assert part == b"x" * min(length, limit)
        offset += length + 2


class Counting(io.BytesIO):
    """Counts the bytes that are read."""

    num_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        block = super().read(size)
        self.num_read += len(block)
        return block


def test_a_stretch_within_a_long_part_is_not_read_beyond_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 16)
    stream = Counting(b"x" * 10_000 + b"\nlast")
    assert list(parts(stream, 100, 200, b"\n", 50)) == []
    assert stream.num_read <= 100 + 2 * 16
    assert list(parts(stream, 9_990, 10_005, b"\n", 50)) == [(10_001, b"last")]
