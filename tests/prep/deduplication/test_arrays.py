"""Arrays in a file: read in parts as they were written, and as safetensors reads them."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from lmstack.prep.deduplication.arrays import ArrayFile, write_arrays

ARRAYS = {
    "keys": np.arange(24, dtype=np.uint64).reshape(4, 6) << np.uint64(40),
    "many": np.arange(1 << 17, dtype=np.uint32),
    "empty": np.empty((0, 3), dtype=np.uint8),
    "offsets": np.array([0, -5, 1 << 40]),
}


def test_rows_are_read_as_written(tmp_path: Path) -> None:
    write_arrays(tmp_path / "file", ARRAYS)
    file = ArrayFile(tmp_path / "file")
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(file.read(name), array, strict=True)
    np.testing.assert_array_equal(file.read("keys", 1, 3), ARRAYS["keys"][1:3], strict=True)
    np.testing.assert_array_equal(file.read("many", 7, 100_000), ARRAYS["many"][7:100_000], strict=True)
    assert file.read("many", 5, 5).tolist() == []


def test_the_file_is_one_of_safetensors_and_the_same_each_time(tmp_path: Path) -> None:
    write_arrays(tmp_path / "one", ARRAYS)
    write_arrays(tmp_path / "two", dict(reversed(ARRAYS.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    np.testing.assert_array_equal(load_file(tmp_path / "one")["keys"], ARRAYS["keys"])
