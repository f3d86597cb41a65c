import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcam.database.filters import DEFLATE, FLETCHER32, SHUFFLE, Filter, fletcher32, pipeline, undo
from embedcam.errors import DatabaseError


def plain_fletcher32(data: bytes) -> int:
    """The algorithm as HDF5 has it, word by word."""
    first = second = 0
    for high, low in zip(data[::2], [*data[1::2], 0], strict=False):
        first = first + (high << 8 | low)
        first = (first & 0xFFFF) + (first >> 16)
        second = second + first
        second = (second & 0xFFFF) + (second >> 16)
    return second << 16 | first


@given(st.binary(max_size=200))
def test_the_checksum_is_hdf5s_own(data):
    assert fletcher32(data) == plain_fletcher32(data)


def test_the_checksum_of_many_words_and_of_carries_only():
    rng = np.random.default_rng(0)
    for data in (rng.bytes(300_001), b"\xff" * 200_000, b"\0" * 10, b"\xff\xff"):
        assert fletcher32(data) == plain_fletcher32(data)


def test_filters_are_undone_in_the_reverse_order():
    values = np.arange(6, dtype="<i4").tobytes()
    shuffled = bytes(values[start + 4 * element] for start in range(4) for element in range(6))
    packed = zlib.compress(shuffled)
    packed += struct.pack("<I", plain_fletcher32(packed))
    steps = (Filter(SHUFFLE, (4,)), Filter(DEFLATE, (4,)), Filter(FLETCHER32, ()))

    assert undo(steps, 0, memoryview(packed), 24) == values
    # A filter that was of no use was skipped for this chunk.
    unpacked = shuffled + struct.pack("<I", plain_fletcher32(shuffled))
    assert undo(steps, 0b010, memoryview(unpacked), 24) == values


@pytest.mark.parametrize(
    ("number", "packed", "message"),
    [
        (FLETCHER32, b"\1" * 12, "checksum"),
        (DEFLATE, b"no deflate", "cannot be inflated"),
        (DEFLATE, zlib.compress(b"\0" * 9), "9 bytes, expected 8"),
        (DEFLATE, zlib.compress(b"\0" * 10**6), "inflates to more than it declares"),
        (DEFLATE, zlib.compress(b"\0" * 8)[:-3], "truncated"),
        (SHUFFLE, b"\0" * 7, "shuffle"),
    ],
)
def test_what_does_not_unpack_to_its_size_is_refused(number, packed, message):
    with pytest.raises(DatabaseError, match=message):
        undo((Filter(number, (4,)),), 0, memoryview(packed), 8)


def test_other_filters_are_refused():
    message = struct.pack("<BB6xHHHHII", 1, 2, SHUFFLE, 0, 1, 1, 4, 0) + struct.pack("<HHHH", 32001, 0, 0, 0)
    with pytest.raises(DatabaseError, match="filter 32001"):
        pipeline(memoryview(message))
    assert pipeline(memoryview(message[:1] + b"\1" + message[2:])) == (Filter(SHUFFLE, (4,)),)
