"""Rows of chunked data sets are those that h5py reads, from files of which no more is read."""

from contextlib import closing

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedcam.database.chunks import FileContent
from embedcam.database.hdf5 import Hdf5
from embedcam.errors import DatabaseError


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_are_those_of_h5py(tmp_path, data):
    shape = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    chunk = tuple(data.draw(st.integers(1, side)) for side in shape)
    values = np.arange(np.prod(shape)).reshape(shape).astype(data.draw(st.sampled_from(["i1", "u1", "<f4", "<i8"])))
    with h5py.File(tmp_path / "x.h5", "w", libver="earliest") as file:
        file.create_dataset("x", data=values, chunks=chunk, fletcher32=True)
    start, stop = sorted(data.draw(st.integers(0, shape[0])) for _ in range(2))
    with closing(FileContent(tmp_path / "x.h5")) as content:
        chunks = Hdf5(content).chunks("x")
        assert (chunks.shape, chunks.dtype) == (values.shape, values.dtype)
        np.testing.assert_array_equal(chunks.read(slice(start, stop)), values[start:stop])


def test_a_damaged_chunk_does_not_hinder_reading_others(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w", libver="earliest") as file:
        file.create_dataset("x", data=np.arange(9), chunks=(3,), fletcher32=True).id.write_direct_chunk((3,), b"bad")
    with closing(FileContent(tmp_path / "x.h5")) as content:
        chunks = Hdf5(content).chunks("x")
        np.testing.assert_array_equal(chunks.read(slice(6, 8)), [6, 7])
        with pytest.raises(DatabaseError, match="checksum"):
            chunks.read(slice(2, 7))
