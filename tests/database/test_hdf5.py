import io
import struct

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from embedcam.database.hdf5 import Hdf5
from embedcam.errors import DatabaseError

NUMBERS = st.sampled_from(["<i4", "<i8", "<f4", "<f8"])


def made(fill, **options) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver="earliest", **options) as file:
        fill(file)
    return buffer.getvalue()


@given(
    NUMBERS.flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(max_dims=3, max_side=7))),
    st.sampled_from([{}, {"chunks": True}, {"compression": "gzip"}, {"shuffle": True, "fletcher32": True}]),
    st.data(),
)
@settings(max_examples=60)
def test_every_array_is_read_as_h5py_reads_it(values, options, data):
    if options:  # chunks that do not divide the sides
        options = options | {"chunks": tuple(data.draw(st.integers(1, side)) for side in values.shape)}
    content = made(lambda file: file.create_group("group").create_dataset("values", data=values, **options))

    found = Hdf5(content).array("group/values")

    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1, max_size=40))
@settings(max_examples=40)
def test_strings_of_either_kind_are_read_as_h5py_reads_them(texts):
    encoded = [text.encode() for text in texts]
    dtype = h5py.string_dtype("utf-8", max([1, *map(len, encoded)]))

    def fill(file):
        file["fixed"] = np.array(encoded, dtype=dtype)
        file["variable"] = np.array(texts, dtype=h5py.string_dtype())
        file.attrs["ünï"], file.attrs["plain"], file.attrs["several"] = texts[0], texts[-1], texts

    file = Hdf5(made(fill))
    assert file.array("fixed").tolist() == texts
    assert file.array("variable").tolist() == texts
    attrs = file.attrs()
    assert (attrs["ünï"], attrs["plain"]) == (texts[0], texts[-1])
    assert attrs["several"].tolist() == texts


def test_attributes_and_long_groups():
    def fill(file):
        for number in range(100):  # more than one node of the group's B-tree
            file[f"many/{number:03d}"] = np.float32(number)
            file["many"].attrs[f"a{number}"] = np.arange(number, dtype="f8")

    file = Hdf5(made(fill))
    assert [float(file.array(f"many/{number:03d}")) for number in range(100)] == list(range(100))
    assert [len(value) for _, value in sorted(file.attrs("many").items(), key=lambda item: int(item[0][1:]))] == list(
        range(100)
    )
    assert "many/099" in file
    assert "many/100" not in file
    assert "none/at/all" not in file


def test_a_large_array_of_many_chunks():
    values = np.random.default_rng(0).standard_normal((3000, 40)).astype("f4")
    content = made(lambda file: file.create_dataset("values", data=values, chunks=(7, 9), compression="gzip"))
    np.testing.assert_array_equal(Hdf5(content).array("values"), values)


def external(file):
    file.create_dataset("x", (4,), "f4", external=[("/etc/passwd", 0, 16)])


def virtual(file):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
    file.create_virtual_dataset("x", layout)


def committed(file):
    file["type"] = np.dtype("f4")
    file.create_dataset("x", (4,), file["type"])


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (external, "found data in another file"),
        (virtual, "storage layout is not"),
        (committed, "shared datatype"),
        (lambda f: f.update({"y": np.zeros(2), "x": h5py.SoftLink("/y")}), "found a link"),
        (lambda f: f.update({"x": h5py.ExternalLink("other.h5", "/x")}), "found a link"),
        (lambda f: f.create_dataset("x", data=np.array([f.ref], h5py.ref_dtype)), "datatype .class 7"),
        (lambda f: f.update({"x": np.zeros(2, [("a", "f4"), ("b", "i4")])}), "datatype .class 6"),
        (lambda f: f.update({"x": np.zeros(2, ">f4")}), "datatype .class 1, 4 bytes"),
        (lambda f: f.update({"x": np.zeros(2, "f2")}), "datatype .class 1, 2 bytes"),
        (lambda f: f.update({"x": np.zeros(2, bool)}), "datatype .class 8"),
        (lambda f: f.update({"x": h5py.Empty("f4")}), "it has no data"),
        (lambda f: f.create_dataset("x", data=np.zeros(9), compression="lzf"), "uses filter 32000"),
        (lambda f: f.create_dataset("x", data=np.zeros(9), scaleoffset=2), "uses filter 6"),
        (lambda f: f.create_dataset("x", (9,), "f4", chunks=(3,)), "0 chunks|refers to byte"),
        (lambda f: f.create_dataset("x", (9,), "f4"), "refers to byte"),
        (lambda f: f.create_group("x"), "expected a dataset, found a group"),
        (lambda f: None, "expected a dataset, found nothing"),
    ],
)
def test_what_format_1_does_not_use_is_refused(fill, message):
    with pytest.raises(DatabaseError, match=message):
        Hdf5(made(fill)).array("x")


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}])
def test_more_data_than_the_file_can_mean_is_refused_before_it_is_unpacked(options):
    """80 MB of zeros in a hundred kilobytes, or in none."""
    chunks = {"chunks": (2**20,)} if options else {}

    def fill(file):
        item = file.create_dataset("x", (20_000_000,), "f4", **options, **chunks)
        if options:
            item[:] = 0

    content = made(fill)
    assert len(content) < 10**6
    with pytest.raises(DatabaseError, match="80,000,000 bytes are declared, more than a file of"):
        Hdf5(content).array("x")


def test_chunks_much_larger_than_the_data_are_refused():
    content = made(lambda f: f.create_dataset("x", (9, 9), "f4", maxshape=(None, None), chunks=(9, 10**7)))
    with pytest.raises(DatabaseError, match="bytes are declared"):
        Hdf5(content).array("x")


def test_short_strings_count_for_what_they_take_in_memory():
    content = made(lambda f: f.create_dataset("x", data=np.full(2_000_000, b"x"), compression="gzip"))
    with pytest.raises(DatabaseError, match="128,000,000 bytes are declared"):
        Hdf5(content).array("x")


def test_many_references_to_one_long_string_are_refused():
    def fill(file):
        file["x"] = np.array(["a" * 10**6] + ["b"] * 200, dtype=h5py.string_dtype())

    content = bytearray(made(fill))
    first = content.find(struct.pack("<I", 10**6))
    reference = content[first : first + 16]
    content[first : first + 16 * 201] = reference * 201
    with pytest.raises(DatabaseError, match="1,000,000 bytes are declared"):
        Hdf5(content).array("x")


def test_an_index_that_leads_back_to_itself_ends():
    values = np.arange(10_000, dtype="f4")
    content = bytearray(made(lambda f: f.create_dataset("x", data=values, chunks=(10,))))
    np.testing.assert_array_equal(Hdf5(content).array("x"), values)
    nodes = [at for at in range(0, len(content), 8) if content[at : at + 5] == b"TREE\1"]
    inner = next(at for at in nodes if content[at + 5] == 1)
    # A level below itself, for ever: the inner node becomes its own first child.
    struct.pack_into("<Q", content, inner + 24 + 24, inner)
    with pytest.raises(DatabaseError, match="index is damaged"):
        Hdf5(content).array("x")
    # Level 200, where every child is the node itself.
    content[inner + 5] = 200
    with pytest.raises(DatabaseError, match="index is damaged"):
        Hdf5(content).array("x")


def test_an_index_whose_nodes_multiply_is_refused():
    """64^5 leaves, from 5 nodes whose 64 children are one and the same node."""
    content = bytearray(made(lambda f: f.create_dataset("x", data=np.arange(8.0), chunks=(4,))))
    root = child = content.find(b"TREE\1")
    key = content[root + 24 : root + 48]
    layout = content.find(struct.pack("<Q", root))
    for level in range(1, 6):
        node = struct.pack("<4sBBHQQ", b"TREE", 1, level, 64, 2**64 - 1, 2**64 - 1)
        node += 64 * (key + struct.pack("<Q", child)) + key
        child, content = len(content), content + node
    struct.pack_into("<Q", content, layout, child)
    struct.pack_into("<Q", content, 40, len(content))  # the end of the file
    with pytest.raises(DatabaseError, match="index is damaged"):
        Hdf5(content).array("x")


def test_a_chunk_that_comes_twice_is_refused():
    content = bytearray(made(lambda f: f.create_dataset("x", data=np.arange(8.0), chunks=(4,))))
    tree = content.find(b"TREE\1")
    second = tree + 24 + 32 + 8
    struct.pack_into("<Q", content, second, 0)
    with pytest.raises(DatabaseError, match="index is damaged"):
        Hdf5(content).array("x")


def test_newer_layouts_are_refused_with_the_fix():
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver="latest") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(DatabaseError, match="superblock [23].*libver='earliest'"):
        Hdf5(buffer.getvalue())


def test_every_cut_ends_in_an_error_or_in_the_same_values():
    values = np.arange(200, dtype="f4")

    def fill(file):
        file.create_dataset("group/x", data=values, chunks=(64,), compression="gzip", fletcher32=True)
        file["group"].attrs["name"] = "text"

    content, refused = made(fill), 0
    for end in range(0, len(content), 3):
        try:
            file = Hdf5(content[:end])
            values_found, name = file.array("group/x"), file.attrs("group")["name"]
        except (DatabaseError, struct.error):  # the latter becomes the former where a database is read
            refused += 1
        else:
            np.testing.assert_array_equal(values_found, values)
            assert name == "text"
    assert refused > len(content) / 3 * 0.8
