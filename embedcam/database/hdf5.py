"""Read HDF5 files of strangers in plain Python: nothing in a file leads out of it, or on for ever.

libhdf5 follows links into other files, loads filters as plug-ins, and crashes or loops on structures made to that end.
Here every address is checked against the file, every size against a budget before memory is taken, and what format 1
does not use is refused. That is HDF5's earliest layout (superblock 0), which h5py writes unless told otherwise.

Source:
    The HDF Group, HDF5 File Format Specification, version 3.0; the sections named below are its.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DatabaseError
from ..utils.limits import allowance
from . import filters

_DATASPACE, _DATATYPE, _LAYOUT, _FILTERS, _ATTRIBUTE, _CONTINUATION, _SYMBOL_TABLE = 1, 3, 8, 11, 12, 16, 17
# Messages that lead elsewhere.
_REFUSED = {2: "a link", 6: "a link", 7: "data in another file", 21: "attributes of a newer layout"}
_STRING, _VARIABLE_STRING = 0x13, 0x19
_REFERENCE = np.dtype([("length", "<u4"), ("heap", "<u8"), ("index", "<u4")])


def _integer(size: int) -> bytes:
    return struct.pack("<BBHIHH", 0x10, 8, 0, size, 0, 8 * size)


def _float(size: int, exponent: int, mantissa: int) -> bytes:
    bias = 2 ** (exponent - 1) - 1
    return struct.pack("<BBHIHHBBBBI", 0x11, 32, 8 * size - 1, size, 0, 8 * size, mantissa, exponent, 0, mantissa, bias)


# How the datatypes of format 1 are written down (IV.A.2.d): signed little-endian integers and IEEE floats.
_NUMBERS: dict[bytes, np.dtype[Any]] = {
    _integer(4): np.dtype("<i4"),
    _integer(8): np.dtype("<i8"),
    _float(4, 8, 23): np.dtype("<f4"),
    _float(8, 11, 52): np.dtype("<f8"),
}


class Hdf5:
    """An HDF5 file, held in memory; items are named by their path, the root by an empty one.

    Args:
        data: The file's content.

    Raises:
        DatabaseError: If it is no HDF5 file, or one of a newer layout.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._budget = allowance(len(data))
        self._groups: dict[str, dict[str, int]] = {}
        self._heaps: dict[int, dict[int, memoryview]] = {}
        self._heap_bytes = 0
        if bytes(self._data[:8]) != b"\x89HDF\r\n\x1a\n":
            raise DatabaseError("it does not start like an HDF5 file")
        version, offsets, lengths = self._unpack("<B4xBB", 8)
        if version:
            raise DatabaseError(
                f"it has HDF5's newer layout (superblock {version}), format 1 has the earliest; "
                "write it again with libver='earliest'"
            )
        base, end = self._unpack("<Q8xQ", 24)
        if (offsets, lengths, base) != (8, 8, 0):
            raise DatabaseError("its superblock is not one of format 1")
        self._at(0, end)
        self._root: int = self._unpack("<Q", 64)[0]

    def __contains__(self, path: str) -> bool:
        return self._find(path) is not None

    def attrs(self, path: str = "") -> dict[str, Any]:
        """Read an item's attributes.

        Args:
            path: Of the item.

        Returns:
            Name -> string, number or array; a list where there are several strings.

        Raises:
            DatabaseError: If there is no such item, or it is damaged.
        """
        return dict(self._attribute(body) for kind, body in self._messages(path) if kind == _ATTRIBUTE)

    def array(self, path: str) -> NDArray[Any]:
        """Read a data set.

        Args:
            path: Of the data set.

        Returns:
            All of it: numbers, or strings as objects.

        Raises:
            DatabaseError: If there is none; if it is damaged, or larger than such a file can mean.
        """
        parts = dict(self._messages(path))
        if not {_DATASPACE, _DATATYPE, _LAYOUT} <= parts.keys():
            raise DatabaseError("expected a dataset, found a group")
        dtype, shape = _dtype(parts[_DATATYPE]), _shape(parts[_DATASPACE])
        self._spend(math.prod(shape) * dtype.itemsize)
        version, layout = struct.unpack_from("<BB", parts[_LAYOUT])
        if version != 3 or layout > 2:
            raise DatabaseError("it lies in the file in another way than format 1 knows")
        if not math.prod(shape):
            return self._values(np.empty(shape, dtype))
        if layout == 2:
            return self._values(self._chunked(parts, dtype, shape))
        if layout == 1:
            stored = self._at(*struct.unpack_from("<QQ", parts[_LAYOUT], 2))
        else:
            (size,) = struct.unpack_from("<H", parts[_LAYOUT], 2)
            stored = parts[_LAYOUT][4 : 4 + size]
        return self._values(_elements(stored, dtype, shape))

    def _at(self, start: int, size: int) -> memoryview:
        if start + size > len(self._data):
            raise DatabaseError(f"it is damaged: {start + size:,} bytes are wanted, the file has {len(self._data):,}")
        return self._data[start : start + size]

    def _unpack(self, form: str, start: int) -> tuple[Any, ...]:
        return struct.unpack(form, self._at(start, struct.calcsize(form)))

    def _spend(self, size: int) -> None:
        self._budget -= size
        if self._budget < 0:
            raise DatabaseError(f"{size:,} bytes are declared, more than a file of {len(self._data):,} bytes may hold")

    def _find(self, path: str) -> int | None:
        """Look up where an item's header lies."""
        if not path:
            return self._root
        parent, _, name = path.rpartition("/")
        if parent not in self._groups:
            if self._find(parent) is None:
                return None
            self._groups[parent] = dict(self._children(parent))
        return self._groups[parent].get(name)

    def _messages(self, path: str) -> Iterator[tuple[int, memoryview]]:
        """Walk an item's header (IV.A.1.a): kind and content of each message."""
        header = self._find(path)
        if header is None:
            raise DatabaseError("expected a dataset, found nothing")
        version, left, size = self._unpack("<BxHxxxxI", header)
        if version != 1:
            raise DatabaseError("its header is damaged, or of HDF5's newer layout")
        blocks = [(header + 16, size)]
        for start, size in blocks:
            block, place = self._at(start, size), 0
            while left and place + 8 <= len(block):
                kind, size, flags = struct.unpack_from("<HHB", block, place)
                body = block[place + 8 : place + 8 + size]
                place, left = place + 8 + size, left - 1
                if kind in _REFUSED or flags & 2:  # bit 1: the message itself lies elsewhere
                    raise DatabaseError(
                        f"expected only items of the file itself, found {_REFUSED.get(kind, 'a shared datatype')}"
                    )
                if kind == _CONTINUATION:
                    blocks.append(struct.unpack_from("<QQ", body))
                else:
                    yield kind, body

    def _attribute(self, body: memoryview) -> tuple[str, Any]:
        """Read an attribute message (IV.A.2.m)."""
        version, *sizes = struct.unpack_from("<BxHHH", body)
        if version not in (1, 3):
            raise DatabaseError(f"an attribute has version {version}, format 1 has 1 and 3")
        place, parts = 8 if version == 1 else 9, []
        for size in sizes:
            parts.append(body[place : place + size])
            place += -(-size // 8) * 8 if version == 1 else size
        name, dtype, shape = bytes(parts[0]).rstrip(b"\0").decode(), _dtype(parts[1]), _shape(parts[2])
        value = self._values(_elements(body[place:], dtype, shape))
        return name, value.item() if not shape else value

    def _values(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Turn strings into str, wherever they lie; numbers stay."""
        if stored.dtype.kind in "SV":
            self._spend(64 * stored.size)  # what a str takes, be it ever so short
        if stored.dtype.kind == "S":
            raw = stored.ravel().tolist()
        elif stored.dtype == _REFERENCE:
            raw = [self._variable(*reference) for reference in stored.ravel().tolist()]
        else:
            return stored
        found = np.empty(len(raw), dtype=object)
        found[:] = [text.decode() for text in raw]
        return found.reshape(stored.shape)

    def _variable(self, length: int, heap: int, index: int) -> bytes:
        """Fetch a string of variable length from a global heap (III.E)."""
        if not length:
            return b""
        self._spend(length)
        if heap not in self._heaps:
            self._heaps[heap] = dict(self._heap(heap))
        text = self._heaps[heap].get(index, memoryview(b""))[:length]
        if len(text) != length:
            raise DatabaseError("a string lies outside of its heap")
        return bytes(text)

    def _heap(self, start: int) -> Iterator[tuple[int, memoryview]]:
        signature, size = self._unpack("<4s4xQ", start)
        # Heaps do not overlap, so together they are no larger than the file.
        self._heap_bytes += size
        if signature != b"GCOL" or self._heap_bytes > len(self._data):
            raise DatabaseError("its strings are damaged")
        block, place = self._at(start, size), 16
        while place + 16 <= size:
            index, size_of = struct.unpack_from("<H6xQ", block, place)
            if not index:  # the rest is free
                return
            yield index, block[place + 16 : place + 16 + size_of]
            place += 16 + -(-size_of // 8) * 8

    def _children(self, path: str) -> Iterator[tuple[str, int]]:
        """List a group (III.B to III.D): a B-tree of symbol nodes, with the names in a heap of their own."""
        table = dict(self._messages(path)).get(_SYMBOL_TABLE)
        if table is None:
            raise DatabaseError("expected a group, found a dataset")
        tree, heap = struct.unpack_from("<QQ", table)
        size, names = self._unpack("<Q8xQ", heap + 8)
        left = len(self._data) // 40  # no more entries than lie side by side in the file
        for _, node in self._leaves(tree, 0, 8):
            signature, count = self._unpack("<4sxxH", node)
            left -= count
            if signature != b"SNOD" or left < 0:
                raise DatabaseError("its list of items is damaged")
            for entry in range(node + 8, node + 8 + 40 * count, 40):
                offset, child, cached = self._unpack("<QQI", entry)
                if cached == 2:
                    raise DatabaseError("expected only items of the file itself, found a link")
                name = bytes(self._at(names, size)[offset : offset + 256]).partition(b"\0")[0]
                yield name.decode(), child

    def _leaves(self, root: int, kind: int, key: int) -> Iterator[tuple[memoryview, int]]:
        """Walk a B-tree of version 1 (III.A.1): each child of its lowest level, and the key before it."""
        nodes: list[tuple[int, int | None]] = [(root, None)]
        left = len(self._data) // (key + 8)  # as above
        while nodes:
            node, wanted = nodes.pop()
            signature, found, level, count = self._unpack("<4sBBH", node)
            left -= max(count, 1)
            # Levels fall by one, and entries are counted, so that this ends.
            if signature != b"TREE" or found != kind or wanted not in (None, level) or left < 0:
                raise DatabaseError("its index is damaged")
            entries = self._at(node + 24, count * (key + 8))
            for place in range(0, len(entries), key + 8):
                (child,) = struct.unpack_from("<Q", entries, place + key)
                if level:
                    nodes.append((child, level - 1))
                else:
                    yield entries[place : place + key], child

    def _chunked(self, parts: dict[int, memoryview], dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Unpack a data set that lies in chunks (IV.A.2.i)."""
        rank = len(shape)
        dimensions, tree = struct.unpack_from("<BQ", parts[_LAYOUT], 2)
        *chunk, size = struct.unpack_from(f"<{dimensions}I", parts[_LAYOUT], 11)
        if len(chunk) != rank or size != dtype.itemsize or min(chunk) < 1:
            raise DatabaseError("its chunks do not fit its shape")
        steps = filters.pipeline(parts[_FILTERS]) if _FILTERS in parts else ()
        grid = [-(-side // step) for side, step in zip(shape, chunk, strict=True)]
        size *= math.prod(chunk)
        # Chunks at the edges are stored whole.
        self._spend(math.prod(grid) * size - math.prod(shape) * dtype.itemsize)
        values, seen = np.empty(shape, dtype), set()
        for key, child in self._leaves(tree, 1, 8 + 8 * (rank + 1)):
            length, skipped, *start, _ = struct.unpack(f"<II{rank + 1}Q", key)
            place = tuple(slice(at, min(at + step, side)) for at, step, side in zip(start, chunk, shape, strict=True))
            aligned = all(at % step == 0 and at < side for at, step, side in zip(start, chunk, shape, strict=True))
            if not aligned or tuple(start) in seen:
                raise DatabaseError("its index is damaged")
            seen.add(tuple(start))
            data = filters.undo(steps, skipped, self._at(child, length), size)
            block = np.frombuffer(data, dtype).reshape(chunk)
            values[place] = block[tuple(slice(0, side.stop - side.start) for side in place)]
        if len(seen) != math.prod(grid):
            raise DatabaseError(f"it has {len(seen)} chunks, expected {math.prod(grid)}")
        return values


def _dtype(message: memoryview) -> np.dtype[Any]:
    """Read a datatype message (IV.A.2.d)."""
    kind, padding, size = struct.unpack_from("<BBxxI", message)
    for encoding, dtype in _NUMBERS.items():
        if message[: len(encoding)] == encoding:
            return dtype
    if kind == _STRING and padding & 15 < 2 and size:
        return np.dtype(f"S{size}")
    if kind == _VARIABLE_STRING and padding & 15 == 1 and size == _REFERENCE.itemsize:
        return _REFERENCE
    raise DatabaseError(f"its datatype (class {kind & 15}, {size} bytes) is none of format 1")


def _shape(message: memoryview) -> tuple[int, ...]:
    """Read a dataspace message (IV.A.2.b)."""
    version, rank, kind = struct.unpack_from("<BBxB", message)
    if version not in (1, 2) or (version == 2 and kind == 2) or rank > 32:
        raise DatabaseError("its shape is damaged, or there is no data")
    return struct.unpack_from(f"<{rank}Q", message, 8 if version == 1 else 4)


def _elements(stored: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Take the elements from the start of stored bytes, as an array of its own."""
    count = math.prod(shape)
    if count * dtype.itemsize > len(stored):
        raise DatabaseError(f"its shape {shape} needs more than the {len(stored):,} bytes it has")
    return np.frombuffer(stored, dtype, count).reshape(shape).copy()
