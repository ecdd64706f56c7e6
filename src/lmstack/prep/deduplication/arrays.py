"""Named arrays in one file, in the layout of safetensors, read in parts so that memory need not grow with a corpus."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

_DTYPES = {"U8": np.uint8, "U32": np.uint32, "I64": np.int64, "U64": np.uint64, "F32": np.float32}


def write_arrays(file: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays; the same arrays give the same bytes.

    Args:
        file: To write.
        arrays: By name; uint8, uint32, int64, uint64 or float32.
    """
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, file)


class ArrayFile:
    """The arrays of a file; nothing stays open and nothing is read before it is asked for.

    Memory maps would do as well, were it not that all they have touched counts as memory of the process.
    """

    def __init__(self, file: Path) -> None:
        """Read the header.

        Args:
            file: What `write_arrays` wrote.
        """
        self._file = file
        with open(file, "rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            self._header: dict[str, Any] = json.loads(stream.read(header_bytes))
        self._data = 8 + header_bytes

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Some rows of an array, or all of it.

        Args:
            name: Of the array.
            start: First row.
            stop: One past the last; None is the end.
        """
        entry = self._header[name]
        num_rows, *row_shape = entry["shape"]
        stop = num_rows if stop is None else stop
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        row_items = int(np.prod(row_shape, dtype=np.int64))
        offset = self._data + entry["data_offsets"][0] + start * row_items * dtype.itemsize
        count = (stop - start) * row_items
        with open(self._file, "rb", buffering=0) as stream:
            data = os.pread(stream.fileno(), count * dtype.itemsize, offset) if count < 1 << 16 else None
            if data is not None:
                flat = np.frombuffer(data, dtype)
            else:
                flat = np.fromfile(stream, dtype, count, offset=offset)
        return flat.reshape(stop - start, *row_shape)
