"""Parts of HDF5 data sets that are stored in chunks, and of files that are too large for memory."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import DatabaseError
from .filters import Filter, undo


class Content(Protocol):
    """The bytes of a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> memoryview: ...


class FileContent:
    """The bytes of an open file, of which only those asked for are read. Threads may share it.

    Args:
        path: The file.

    Raises:
        DatabaseError: If it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise DatabaseError(f"cannot read {path}: {error.strerror or error}; check the file") from error
        self._size = os.fstat(self._file.fileno()).st_size
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice, /) -> memoryview:
        start, stop, _ = part.indices(self._size)
        data, filled = memoryview(bytearray(max(stop - start, 0))), 0
        with self._lock:
            self._file.seek(start)
            while filled < len(data) and (read := self._file.readinto(data[filled:])):
                filled += read
        return data[:filled]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Chunks:
    """A data set in chunks, of which rows are read.

    Args:
        at: Returns bytes of the file, by address and size.
        entries: Leaves of its B-tree, each chunk with the key before it.
        filters: Of its chunks.
        dtype: Type of its elements.
        shape: Its shape.
        chunk: Shape of a chunk.

    Raises:
        DatabaseError: If the chunks do not cover the shape, each part once.

    Source:
        HDF5 File Format Specification, III.A.1.
    """

    def __init__(
        self,
        at: Callable[[int, int], memoryview],
        entries: bytes,
        filters: tuple[Filter, ...],
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        chunk: Sequence[int],
    ) -> None:
        self._at, self._filters, self._chunk = at, filters, tuple(chunk)
        self.dtype, self.shape = dtype, shape
        grid = [-(-side // step) for side, step in zip(shape, chunk, strict=True)]
        form = [("length", "<u4"), ("skipped", "<u4"), ("start", "<u8", (len(shape) + 1,)), ("address", "<u8")]
        found = np.frombuffer(entries, np.dtype(form))
        if len(found) != math.prod(grid):
            raise DatabaseError(f"it has {len(found)} chunks, expected {math.prod(grid)}")
        starts, steps = found["start"][:, :-1], np.array(chunk, np.uint64)
        if (starts % steps).any() or (starts >= np.array(shape, np.uint64)).any():
            raise DatabaseError("its index is damaged")
        numbers = np.ravel_multi_index(tuple((starts // steps).astype(np.int64).T), grid)
        order = np.argsort(numbers, kind="stable")  # almost sorted already
        if not np.array_equal(numbers[order], np.arange(len(numbers))):
            raise DatabaseError("its index is damaged")
        self._entries, self._per_row = found[order], math.prod(grid[1:])

    def read(self, rows: slice) -> NDArray[Any]:
        """Read consecutive rows.

        Args:
            rows: With a start and a stop inside the data set.

        Returns:
            Their elements, as stored.

        Raises:
            DatabaseError: If a chunk is damaged.
        """
        values = np.empty((rows.stop - rows.start, *self.shape[1:]), self.dtype)
        size = math.prod(self._chunk) * self.dtype.itemsize
        first, last = rows.start // self._chunk[0], -(-rows.stop // self._chunk[0])
        entries = self._entries[first * self._per_row : last * self._per_row]
        columns = (entries[key].tolist() for key in ("length", "skipped", "start", "address"))
        for length, skipped, start, address in zip(*columns, strict=True):
            block = np.frombuffer(undo(self._filters, skipped, self._at(address, length), size), self.dtype)
            ends = map(min, map(sum, zip(start, self._chunk, strict=False)), (rows.stop, *self.shape[1:]))
            region = [slice(at, end) for at, end in zip(start, ends, strict=False)]
            inside = [slice(0, each.stop - each.start) for each in region]
            inside[0] = slice(max(rows.start - start[0], 0), inside[0].stop)
            region[0] = slice(max(start[0], rows.start) - rows.start, region[0].stop - rows.start)
            values[tuple(region)] = block.reshape(self._chunk)[tuple(inside)]
        return values

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Read any rows, each chunk once.

        Args:
            rows: (n,) their indices, inside the data set.

        Returns:
            (n, ...), their elements in this order.

        Raises:
            DatabaseError: If a chunk is damaged.
        """
        values, step = np.empty((len(rows), *self.shape[1:]), self.dtype), self._chunk[0]
        chunks = rows // step
        for number in np.unique(chunks).tolist():
            inside, start = chunks == number, number * step
            block = self.read(slice(start, min(start + step, self.shape[0])))
            values[inside] = block[rows[inside] - start]
        return values
