"""The HDF5 filters that format 1 allows, undone: deflate, shuffle and the Fletcher-32 checksum."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from ..errors import DatabaseError

DEFLATE, SHUFFLE, FLETCHER32 = 1, 2, 3
# Words per block of a checksum, so that their weighted sum stays below 2^53, where doubles are exact.
_BLOCK = 2**16
_WEIGHTS = np.arange(_BLOCK, 0, -1, dtype=np.float64)


@dataclass(frozen=True)
class Filter:
    """One filter of a pipeline.

    Attributes:
        number: HDF5's number of the filter.
        options: Parameters; the first one of `SHUFFLE` is the size of an element in bytes.
    """

    number: int
    options: tuple[int, ...]


def pipeline(message: memoryview) -> tuple[Filter, ...]:
    """Read the filters that were applied to a data set.

    Args:
        message: A filter pipeline message of version 1.

    Returns:
        The filters, in the order of writing.

    Raises:
        DatabaseError: If a filter is not one of the three, for which HDF5 would load a plug-in.

    Source:
        HDF5 File Format Specification, IV.A.2.l.
    """
    version, count = struct.unpack_from("<BB", message)
    if version != 1:
        raise DatabaseError(f"its filters are listed in version {version}, format 1 has 1")
    filters, offset = [], 8
    for _ in range(count):
        number, name, _, values = struct.unpack_from("<HHHH", message, offset)
        if number not in (DEFLATE, SHUFFLE, FLETCHER32):
            raise DatabaseError(f"it uses filter {number}, format 1 has deflate, shuffle and fletcher32")
        offset += 8 + name
        filters.append(Filter(number, struct.unpack_from(f"<{values}I", message, offset)))
        offset += 4 * (values + values % 2)
    return tuple(filters)


def undo(filters: tuple[Filter, ...], skipped: int, packed: memoryview, size: int) -> bytes:
    """Undo the filters of one chunk.

    Args:
        filters: The filters, in the order of writing.
        skipped: Bit mask; filter i was not applied if bit i is set.
        packed: The stored bytes.
        size: Size of the unpacked chunk in bytes; no more is ever unpacked.

    Returns:
        The unpacked chunk.

    Raises:
        DatabaseError: If the chunk does not match its checksum or its size.
    """
    data = bytes(packed)
    for index, step in reversed(list(enumerate(filters))):
        if skipped >> index & 1:
            continue
        if step.number == FLETCHER32:
            data, checksum = data[:-4], data[-4:]
            if checksum != struct.pack("<I", fletcher32(data)):
                raise DatabaseError("its checksum does not match its content")
        elif step.number == DEFLATE:
            # A checksum of 4 bytes may have been appended before deflating.
            data = _inflate(data, size + 4 * len(filters))
        else:
            data = _unshuffle(data, step.options)
    if len(data) != size:
        raise DatabaseError(f"a chunk has {len(data)} bytes, expected {size}")
    return data


def fletcher32(data: bytes) -> int:
    """Compute HDF5's Fletcher-32 checksum, over big-endian words of 16 bits.

    Args:
        data: Bytes; an odd last byte is the upper half of a word.

    Returns:
        The sum of sums in the upper 16 bits, the sum in the lower ones.
    """
    words = np.frombuffer(data + b"\0" * (len(data) % 2), dtype=">u2")
    first = second = 0
    for start in range(0, len(words), _BLOCK):
        block = words[start : start + _BLOCK].astype(np.float64)
        # The sum so far counts once for each word of the block, and each word once for itself and all after it.
        second += len(block) * first + int((_WEIGHTS[_BLOCK - len(block) :] * block).sum())
        first += int(block.sum())
    # HDF5 folds the carry back in, which leaves 65535 where the remainder is 0 and the sum is not.
    first, second = (total and (total - 1) % 65535 + 1 for total in (first, second))
    return second << 16 | first


def _inflate(data: bytes, most: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        inflated = stream.decompress(data, most)
    except zlib.error as error:
        raise DatabaseError(f"it cannot be inflated ({error})") from error
    if not stream.eof:
        raise DatabaseError("a chunk is truncated, or inflates to more than it declares")
    return inflated


def _unshuffle(data: bytes, options: tuple[int, ...]) -> bytes:
    size = options[0] if options else 0
    if size < 1 or len(data) % size:
        raise DatabaseError("its shuffle filter does not match its elements")
    return np.frombuffer(data, np.uint8).reshape(size, -1).T.tobytes()
