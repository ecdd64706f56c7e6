"""Pieces counted range by range, against a plain count."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lmstack.prep.deduplication import repeats
from lmstack.prep.deduplication.repeats import PieceCounts, Repeats, write_repeats


def _hashes(seed: int, size: int) -> np.ndarray:
    """Few different values over the whole range."""
    values = np.random.default_rng(0).integers(0, 1 << 64, size=300, dtype=np.uint64)
    return np.random.default_rng(seed).choice(values, size=size)


def _write(partitions: list[np.ndarray], folder: Path, min_count: int) -> None:
    files = [folder / f"survey-{number}" for number in range(len(partitions))]
    for hashes, file in zip(partitions, files, strict=True):
        counts = PieceCounts()
        for part in np.array_split(hashes, 3):
            counts.add(part)
        counts.write(file)
    write_repeats(files, folder, min_count)


@pytest.mark.parametrize("fewest_merged", [1 << 20, 10])
def test_repeats_and_their_first_places_agree_with_a_plain_count(
    fewest_merged: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "_FEWEST_MERGED", fewest_merged)
    partitions = [_hashes(1, 200), _hashes(2, 0), _hashes(3, 150)]
    _write(partitions, tmp_path, min_count=3)
    counts = Counter(np.concatenate(partitions).tolist())
    seen: set[int] = set()
    for number, hashes in enumerate(partitions):
        found = Repeats(tmp_path, number)
        for part in np.array_split(hashes, 4):
            is_repeat, is_first = found.find(part)
            for value, repeated, first in zip(part.tolist(), is_repeat.tolist(), is_first.tolist(), strict=True):
                assert repeated == (counts[value] >= 3)
                assert first == (repeated and value not in seen)
                seen.add(value)


def test_a_corpus_without_repeats(tmp_path: Path) -> None:
    _write([np.arange(5, dtype=np.uint64)], tmp_path, min_count=2)
    is_repeat, is_first = Repeats(tmp_path, 0).find(np.arange(5, dtype=np.uint64))
    assert not is_repeat.any()
    assert not is_first.any()
