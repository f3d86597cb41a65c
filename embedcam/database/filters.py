"""Undo the filters that HDF5 data sets of a weight database may bear: checksum, deflate and shuffle, no others."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from ..errors import DatabaseError

DEFLATE, SHUFFLE, FLETCHER32 = 1, 2, 3
# Words a block when a checksum is worked out: their weighted sum stays far below 2^63.
_BLOCK = 2**16


@dataclass(frozen=True)
class Filter:
    """One step of a pipeline.

    Attributes:
        number: HDF5's number of it.
        options: Its parameters; the first of `SHUFFLE` is the size of an element.
    """

    number: int
    options: tuple[int, ...]


def pipeline(message: memoryview) -> tuple[Filter, ...]:
    """Read which filters a data set went through when it was written.

    Args:
        message: A filter pipeline message, of version 1.

    Returns:
        They, in the order of writing.

    Raises:
        DatabaseError: If one is none of the three; HDF5 would look for a plug-in.

    Source:
        HDF5 File Format Specification, IV.A.2.l.
    """
    version, count = struct.unpack_from("<BB", message)
    if version != 1:
        raise DatabaseError(f"its filters are listed in version {version}, format 1 has 1")
    found, place = [], 8
    for _ in range(count):
        number, name, _, values = struct.unpack_from("<HHHH", message, place)
        if number not in (DEFLATE, SHUFFLE, FLETCHER32):
            raise DatabaseError(f"it is packed by filter {number}, format 1 has deflate, shuffle and fletcher32")
        place += 8 + name
        found.append(Filter(number, struct.unpack_from(f"<{values}I", message, place)))
        place += 4 * (values + values % 2)
    return tuple(found)


def undo(filters: tuple[Filter, ...], skipped: int, packed: memoryview, size: int) -> bytes:
    """Unpack one chunk.

    Args:
        filters: As `pipeline` gives them.
        skipped: Bit i is set where filter i was left out.
        packed: What the file holds.
        size: Bytes that the chunk must have in the end; no more are ever unpacked.

    Returns:
        The chunk.

    Raises:
        DatabaseError: If it does not match its checksum or its size.
    """
    data = bytes(packed)
    for place in reversed(range(len(filters))):
        if skipped >> place & 1:
            continue
        step = filters[place]
        if step.number == FLETCHER32:
            data, checksum = data[:-4], data[-4:]
            if checksum != struct.pack("<I", fletcher32(data)):
                raise DatabaseError("its checksum does not match its content")
        elif step.number == DEFLATE:
            # A checksum may have been taken before packing.
            data = _inflate(data, size + 4 * len(filters))
        else:
            data = _unshuffle(data, step.options)
    if len(data) != size:
        raise DatabaseError(f"a chunk has {len(data)} bytes, expected {size}")
    return data


def fletcher32(data: bytes) -> int:
    """Work out HDF5's checksum: Fletcher's, of big-endian words of 16 bits.

    Args:
        data: Of any length; a last odd byte counts as the upper half of a word.

    Returns:
        The sum of sums in the upper 16 bits, the sum in the lower.
    """
    words = np.frombuffer(data + b"\0" * (len(data) % 2), dtype=">u2")
    first = second = 0
    for start in range(0, len(words), _BLOCK):
        block = words[start : start + _BLOCK].astype(np.int64)
        # The sum so far counts once more at each word, and each word once at itself and at all after it.
        second += len(block) * first + int(np.arange(len(block), 0, -1) @ block)
        first += int(block.sum())
    # Folding the carry back in keeps 65535 where the remainder is 0, but for a sum that is 0.
    first, second = (total and (total - 1) % 65535 + 1 for total in (first, second))
    return second << 16 | first


def _inflate(data: bytes, most: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data, most)
    except zlib.error as error:
        raise DatabaseError(f"it cannot be unpacked ({error})") from error
    if not stream.eof:
        raise DatabaseError("a chunk is cut off, or unpacks to more than it declares")
    return found


def _unshuffle(data: bytes, options: tuple[int, ...]) -> bytes:
    size = options[0] if options else 0
    if size < 1 or len(data) % size:
        raise DatabaseError("its shuffle filter does not fit its elements")
    return np.frombuffer(data, np.uint8).reshape(size, -1).T.tobytes()
