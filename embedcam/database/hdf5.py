"""Read untrusted HDF5 files in plain Python, with bounds on time and memory.

libhdf5 follows links into other files, loads filters as plug-ins, and crashes or loops on malicious structures. Here
every address is checked against the file, every size against a budget before memory is allocated, and whatever format 1
does not use is refused. Format 1 uses HDF5's earliest layout (superblock 0), which h5py writes by default.

pyfive 1.3, the other reader in plain Python, cannot take this module's place: a file of 1.4 KB that declares 2 GiB
takes 2 GiB and 4 s, one of 1.2 MB with 4,000 references to one string takes 3.8 GiB, and a B-tree whose 64 children are
one and the same node does not end. It also accepts external data sets and requires numpy 2, numcodecs and Python 3.11.

Source:
    The HDF Group, HDF5 File Format Specification, version 3.0. Comments name its sections.
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
from .chunks import Chunks, Content

_DATASPACE, _DATATYPE, _LAYOUT, _FILTERS, _ATTRIBUTE, _CONTINUATION, _SYMBOL_TABLE = 1, 3, 8, 11, 12, 16, 17
# Messages that refer to something outside the object itself.
_REFUSED = {2: "a link", 6: "a link", 7: "data in another file", 21: "attributes of a newer layout"}
_STRING, _VARIABLE_STRING = 0x13, 0x19
_REFERENCE = np.dtype([("length", "<u4"), ("heap", "<u8"), ("index", "<u4")])


def _integer(size: int, sign: int = 8) -> bytes:
    return struct.pack("<BBHIHH", 0x10, sign, 0, size, 0, 8 * size)


def _float(size: int, exponent: int, mantissa: int) -> bytes:
    bias = 2 ** (exponent - 1) - 1
    return struct.pack("<BBHIHHBBBBI", 0x11, 32, 8 * size - 1, size, 0, 8 * size, mantissa, exponent, 0, mantissa, bias)


# Encodings of the datatypes of format 1 (IV.A.2.d): little-endian integers, and IEEE floats; bytes are of galleries.
_NUMBERS: dict[bytes, np.dtype[Any]] = {
    _integer(1): np.dtype("i1"),
    _integer(1, sign=0): np.dtype("u1"),
    _integer(4): np.dtype("<i4"),
    _integer(8): np.dtype("<i8"),
    _float(4, 8, 23): np.dtype("<f4"),
    _float(8, 11, 52): np.dtype("<f8"),
}


class Hdf5:
    """An HDF5 file. Items are addressed by path; the empty path is the root group.

    Args:
        data: Content of the file, in memory or not.

    Raises:
        DatabaseError: If it is not an HDF5 file, or has a newer layout.
    """

    def __init__(self, data: bytes | Content) -> None:
        self._data: Content = memoryview(data) if isinstance(data, bytes) else data
        self._budget = allowance(len(data))
        self._groups: dict[str, dict[str, int]] = {}
        self._heaps: dict[int, dict[int, memoryview]] = {}
        self._heap_bytes = 0
        if bytes(self._data[:8]) != b"\x89HDF\r\n\x1a\n":
            raise DatabaseError("it is not an HDF5 file")
        version, offsets, lengths = self._unpack("<B4xBB", 8)
        if version:
            raise DatabaseError(
                f"it has HDF5's newer layout (superblock {version}), format 1 has the earliest; "
                "write it again with libver='earliest'"
            )
        base, end = self._unpack("<Q8xQ", 24)
        if (offsets, lengths, base) != (8, 8, 0):
            raise DatabaseError("its superblock is not one of format 1")
        self._require_inside(0, end)
        self._root: int = self._unpack("<Q", 64)[0]

    def __contains__(self, path: str) -> bool:
        return self._find(path) is not None

    def attrs(self, path: str = "") -> dict[str, Any]:
        """Read the attributes of an item.

        Args:
            path: Path of a group or data set.

        Returns:
            Name -> string, number, or array of numbers or of strings (dtype object).

        Raises:
            DatabaseError: If the item is missing or damaged.
        """
        return dict(self._attribute(body) for kind, body in self._messages(path) if kind == _ATTRIBUTE)

    def array(self, path: str) -> NDArray[Any]:
        """Read a whole data set.

        Args:
            path: Path of the data set.

        Returns:
            Array of numbers, or of strings (dtype object).

        Raises:
            DatabaseError: If there is no such data set, it is damaged, or it is larger than the file allows.
        """
        parts, dtype, shape, layout = self._dataset(path)
        self._spend(math.prod(shape) * dtype.itemsize)
        if not math.prod(shape):
            return self._values(np.empty(shape, dtype))
        if layout == 2:
            return self._values(self._chunked(parts, dtype, shape).read(slice(0, shape[0])))
        if layout == 1:
            stored = self._at(*struct.unpack_from("<QQ", parts[_LAYOUT], 2))
        else:
            (size,) = struct.unpack_from("<H", parts[_LAYOUT], 2)
            stored = parts[_LAYOUT][4 : 4 + size]
        return self._values(_elements(stored, dtype, shape))

    def chunks(self, path: str) -> Chunks:
        """Open a data set of numbers that is stored in chunks, to read some of its rows.

        Args:
            path: Path of the data set.

        Returns:
            The data set. It takes no more memory than the file has bytes.

        Raises:
            DatabaseError: If there is no such data set, it is damaged, or it is larger than the file.
        """
        parts, dtype, shape, layout = self._dataset(path)
        if layout != 2 or dtype.kind in "SV":
            raise DatabaseError("expected chunks of numbers")
        if math.prod(shape) * dtype.itemsize > len(self._data):
            raise DatabaseError(f"its shape {shape} needs more than the {len(self._data):,} bytes of the file")
        return self._chunked(parts, dtype, shape)

    def _dataset(self, path: str) -> tuple[dict[int, memoryview], np.dtype[Any], tuple[int, ...], int]:
        # Its messages, type, shape and class of layout (IV.A.2.i).
        parts = dict(self._messages(path))
        if not {_DATASPACE, _DATATYPE, _LAYOUT} <= parts.keys():
            raise DatabaseError("expected a dataset, found a group")
        version, layout = struct.unpack_from("<BB", parts[_LAYOUT])
        if version != 3 or layout > 2:
            raise DatabaseError("its storage layout is not one of format 1")
        return parts, _dtype(parts[_DATATYPE]), _shape(parts[_DATASPACE]), layout

    def _require_inside(self, start: int, size: int) -> None:
        if start + size > len(self._data):
            raise DatabaseError(f"it is damaged: it refers to byte {start + size:,}, the file has {len(self._data):,}")

    def _at(self, start: int, size: int) -> memoryview:
        self._require_inside(start, size)
        return self._data[start : start + size]

    def _unpack(self, form: str, start: int) -> tuple[Any, ...]:
        return struct.unpack(form, self._at(start, struct.calcsize(form)))

    def _spend(self, size: int) -> None:
        self._budget -= size
        if self._budget < 0:
            raise DatabaseError(f"{size:,} bytes are declared, more than a file of {len(self._data):,} bytes may hold")

    def _find(self, path: str) -> int | None:
        # The address of the item's header.
        if not path:
            return self._root
        parent, _, name = path.rpartition("/")
        if parent not in self._groups:
            if self._find(parent) is None:
                return None
            self._groups[parent] = dict(self._children(parent))
        return self._groups[parent].get(name)

    def _messages(self, path: str) -> Iterator[tuple[int, memoryview]]:
        # The kind and content of each message of an object header (IV.A.1.a).
        header = self._find(path)
        if header is None:
            raise DatabaseError("expected a dataset, found nothing")
        version, left, size = self._unpack("<BxHxxxxI", header)
        if version != 1:
            raise DatabaseError("its header is damaged, or of HDF5's newer layout")
        blocks = [(header + 16, size)]
        for start, size in blocks:
            self._spend(size)
            block, offset = self._at(start, size), 0
            while left and offset + 8 <= len(block):
                kind, size, flags = struct.unpack_from("<HHB", block, offset)
                body = block[offset + 8 : offset + 8 + size]
                offset, left = offset + 8 + size, left - 1
                if kind in _REFUSED or flags & 2:  # bit 1: the message is stored elsewhere
                    raise DatabaseError(
                        f"expected only items of the file itself, found {_REFUSED.get(kind, 'a shared datatype')}"
                    )
                if kind == _CONTINUATION:
                    blocks.append(struct.unpack_from("<QQ", body))
                else:
                    yield kind, body

    def _attribute(self, body: memoryview) -> tuple[str, Any]:
        # IV.A.2.m
        version, *sizes = struct.unpack_from("<BxHHH", body)
        if version not in (1, 3):
            raise DatabaseError(f"an attribute has version {version}, format 1 has 1 and 3")
        offset, parts = 8 if version == 1 else 9, []
        for size in sizes:
            parts.append(body[offset : offset + size])
            offset += -(-size // 8) * 8 if version == 1 else size
        name, dtype, shape = bytes(parts[0]).rstrip(b"\0").decode(), _dtype(parts[1]), _shape(parts[2])
        value = self._values(_elements(body[offset:], dtype, shape))
        return name, value.item() if not shape else value

    def _values(self, stored: NDArray[Any]) -> NDArray[Any]:
        # Convert strings of either kind to str; numbers stay as they are.
        if stored.dtype.kind in "SV":
            self._spend(64 * stored.size)  # the least that a str takes in memory
        if stored.dtype.kind == "S":
            raw = stored.ravel().tolist()
        elif stored.dtype == _REFERENCE:
            raw = [self._variable(*reference) for reference in stored.ravel().tolist()]
        else:
            return stored
        texts = np.empty(len(raw), dtype=object)
        texts[:] = [text.decode() for text in raw]
        return texts.reshape(stored.shape)

    def _variable(self, length: int, heap: int, index: int) -> bytes:
        # A string of variable length, from a global heap (III.E).
        if not length:
            return b""
        self._spend(length)
        if heap not in self._heaps:
            self._heaps[heap] = dict(self._heap(heap))
        text = self._heaps[heap].get(index, memoryview(b""))[:length]
        if len(text) != length:
            raise DatabaseError("a string exceeds its heap")
        return bytes(text)

    def _heap(self, start: int) -> Iterator[tuple[int, memoryview]]:
        signature, size = self._unpack("<4s4xQ", start)
        # Heaps do not overlap, so their total size is at most that of the file.
        self._heap_bytes += size
        if signature != b"GCOL" or self._heap_bytes > len(self._data):
            raise DatabaseError("its strings are damaged")
        block, offset = self._at(start, size), 16
        while offset + 16 <= size:
            index, length = struct.unpack_from("<H6xQ", block, offset)
            if not index:  # the rest is free
                return
            yield index, block[offset + 16 : offset + 16 + length]
            offset += 16 + -(-length // 8) * 8

    def _children(self, path: str) -> Iterator[tuple[str, int]]:
        # The names and addresses of a group's items (III.B to III.D): a B-tree of symbol nodes, and a heap of names.
        table = dict(self._messages(path)).get(_SYMBOL_TABLE)
        if table is None:
            raise DatabaseError("expected a group, found a dataset")
        tree, heap = struct.unpack_from("<QQ", table)
        size, place = self._unpack("<Q8xQ", heap + 8)
        names = self._at(place, size)
        left = len(self._data) // 40  # no more entries than fit in the file
        for (node,) in struct.iter_unpack("<8xQ", self._leaves(tree, 0, 8)):
            signature, count = self._unpack("<4sxxH", node)
            left -= count
            if signature != b"SNOD" or left < 0:
                raise DatabaseError("its list of items is damaged")
            for entry in range(node + 8, node + 8 + 40 * count, 40):
                offset, child, cached = self._unpack("<QQI", entry)
                if cached == 2:
                    raise DatabaseError("expected only items of the file itself, found a link")
                name = bytes(names[offset : offset + 256]).partition(b"\0")[0]
                yield name.decode(), child

    def _leaves(self, root: int, kind: int, key: int) -> bytes:
        # The children at the lowest level of a B-tree of version 1 (III.A.1), each with the key before it.
        nodes: list[tuple[int, int | None]] = [(root, None)]
        left = len(self._data) // (key + 8)  # as above
        leaves = []
        while nodes:
            node, expected = nodes.pop()
            signature, node_kind, level, count = self._unpack("<4sBBH", node)
            left -= max(count, 1)
            # Levels decrease by one and entries are counted, so that this ends.
            if signature != b"TREE" or node_kind != kind or expected not in (None, level) or left < 0:
                raise DatabaseError("its index is damaged")
            entries = self._at(node + 24, count * (key + 8))
            if level:
                nodes += [(child, level - 1) for (child,) in struct.iter_unpack(f"<{key}xQ", entries)]
            else:
                leaves.append(entries)
        return b"".join(leaves)

    def _chunked(self, parts: dict[int, memoryview], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Chunks:
        # IV.A.2.i
        rank = len(shape)
        dimensions, tree = struct.unpack_from("<BQ", parts[_LAYOUT], 2)
        *chunk, size = struct.unpack_from(f"<{dimensions}I", parts[_LAYOUT], 11)
        if len(chunk) != rank or size != dtype.itemsize or min(chunk) < 1:
            raise DatabaseError("its chunks do not match its shape")
        steps = filters.pipeline(parts[_FILTERS]) if _FILTERS in parts else ()
        # Chunks at the edges are stored with their full size.
        grid = math.prod(-(-side // step) for side, step in zip(shape, chunk, strict=True))
        self._spend(grid * size * math.prod(chunk) - math.prod(shape) * dtype.itemsize)
        leaves = self._leaves(tree, 1, 8 + 8 * (rank + 1)) if grid else b""
        return Chunks(self._at, leaves, steps, dtype, shape, chunk)


def _dtype(message: memoryview) -> np.dtype[Any]:
    # IV.A.2.d
    kind, padding, size = struct.unpack_from("<BBxxI", message)
    for encoding, dtype in _NUMBERS.items():
        if message[: len(encoding)] == encoding:
            return dtype
    if kind == _STRING and padding & 15 < 2 and size:
        return np.dtype(f"S{size}")
    if kind == _VARIABLE_STRING and padding & 15 == 1 and size == _REFERENCE.itemsize:
        return _REFERENCE
    raise DatabaseError(f"its datatype (class {kind & 15}, {size} bytes) is not one of format 1")


def _shape(message: memoryview) -> tuple[int, ...]:
    # IV.A.2.b
    version, rank, kind = struct.unpack_from("<BBxB", message)
    if version not in (1, 2) or (version == 2 and kind == 2) or rank > 32:
        raise DatabaseError("its shape is damaged, or it has no data")
    return struct.unpack_from(f"<{rank}Q", message, 8 if version == 1 else 4)


def _elements(stored: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    count = math.prod(shape)
    if count * dtype.itemsize > len(stored):
        raise DatabaseError(f"its shape {shape} needs more than the {len(stored):,} bytes it has")
    return np.frombuffer(stored, dtype, count).reshape(shape).copy()
