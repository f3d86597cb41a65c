"""The reader in plain JavaScript, and thereby the file format's specification, agrees with h5py."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from embedcam.database import Exemplars, WeightDatabase
from embedcam.database.neighbors import Partitions
from embedcam.database.store import seal, unseal

READER = Path(__file__).parents[1] / "examples" / "read_database.mjs"
GOLDEN = Path(__file__).parent / "golden" / "weights-1.0.0.h5"
TYPES = {"Int32Array": "<i4", "BigInt64Array": "<i8", "Float32Array": "<f4", "Float64Array": "<f8"}
# Everything that the reader offers; integers of 64 bits as text, since numbers in JavaScript have 53.
DUMP = """
const { openDatabase } = await import(process.argv[2]);
const { readFile } = await import("node:fs/promises");
const database = await openDatabase(await readFile(process.argv[1]));
const plain = (value) => {
  if (typeof value === "bigint") return `${value}`;
  return typeof value === "object" ? Array.from(value, plain) : value;
};
const found = {};
for (const path of database.items) {
  const shape = database.shape(path), values = shape && await database.dataset(path);
  const type = shape && (shape.length > 1 ? values[0] : values).constructor.name;
  const attributes = Object.entries(database.attributes(path)).map(([name, value]) => [name, plain(value)]);
  found[path] = { shape, type, values: shape && plain(values), attributes: Object.fromEntries(attributes) };
}
console.log(JSON.stringify(found));
"""

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")


def node(*arguments):
    command = ["node", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


def read(path):
    """Paths of a file's items -> what the reader finds there."""
    result = node("--input-type=module", "--eval", DUMP, path, READER.as_uri())
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def plain(value):
    """A value of h5py's as the dump writes it."""
    if isinstance(value, np.ndarray):
        return [plain(each) for each in value]
    if isinstance(value, bytes):
        return value.decode()
    return str(value) if isinstance(value, np.integer) and value.dtype == np.int64 else value


def assert_same(found, path):
    with h5py.File(path) as file:
        items = {"/": file}
        file.visititems(lambda name, item: items.update({f"/{name}": item}))
        assert found.keys() == items.keys()
        for name, item in items.items():
            assert found[name]["attributes"] == {key: plain(value) for key, value in item.attrs.items()}, name
            if isinstance(item, h5py.Group):
                assert "values" not in found[name]
                continue
            assert found[name]["shape"] == list(item.shape), name
            values = item[()]
            if values.dtype.kind == "S":
                assert found[name]["values"] == plain(values), name
            else:
                assert TYPES[found[name]["type"]] == values.dtype, name
                np.testing.assert_array_equal(np.array(found[name]["values"]).astype(values.dtype), values, name)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A database whose exemplars lie in more chunks than one node of an index names, some reaching over the edges."""
    db = WeightDatabase.load(GOLDEN)
    count, (_, dim), top = 40_001, db.centroids.shape, db.top_k
    number = np.arange(count)
    exemplars = Exemplars(
        ((number[:, None] + np.arange(dim)) % 251).astype(np.float32),
        ((number[:, None] + np.arange(top)) % 128).astype(np.int32),
        np.broadcast_to(-np.arange(top, dtype=np.float32), (count, top)),
        number % db.clusters,
        number % 4 - 1,
        tuple(f"{i}.jpg" for i in number),
        Partitions(
            db.centroids,
            (number % db.clusters).astype(np.int32),
            2,
        ),
    )
    path = tmp_path_factory.mktemp("large") / "weights.h5"
    replace(db, exemplars=exemplars, seed=2**53 + 1).save(path)
    return path


def test_a_built_database_is_read_as_h5py_reads_it(trained):
    assert_same(read(trained / "weights.h5"), trained / "weights.h5")


def test_two_layers_and_unicode_are_read_as_h5py_reads_them():
    assert_same(read(GOLDEN), GOLDEN)


def test_many_chunks_are_read_as_h5py_reads_them(large):
    with h5py.File(large) as file:
        channels = file["exemplars/top_channels"]
        assert channels.id.get_num_chunks() > 64
        assert [side % step != 0 for side, step in zip(channels.shape, channels.chunks, strict=True)] == [True, False]
    assert_same(read(large), large)


def test_the_command_line_lists_items_and_prints_one(trained):
    path = trained / "weights.h5"
    listed = json.loads(node(READER, path).stdout)
    values = json.loads(node(READER, path, "/clusters/top_channels").stdout)

    db = WeightDatabase.load(path)
    assert listed["/network"]["attributes"]["sha256"] == db.network.sha256
    assert listed["/clusters/top_channels"]["shape"] == [4, 12]
    assert values == db.top_channels.tolist()


def spoiled(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def spoilt_files():
    """Name -> a file that must be refused, and a word of the reason."""
    content = GOLDEN.read_bytes()
    bare = bytes(unseal(content)[0])
    with h5py.File(GOLDEN) as file:
        chunk = file["clusters/weights_mean"].id.get_chunk_info(0)
    return {
        "an attribute": (spoiled(content, content.index(b"triplet_margin")), "checksum"),
        "a chunk, without a checksum of the file": (spoiled(bare, chunk.byte_offset + chunk.size // 2), ""),
        "half of it": (content[: len(content) // 2], ""),
        "a newer format": (seal(bare.replace(b"1.0.0", b"2.0.0")), "2.0.0"),
        "another file": (bytes(200), "HDF5"),
    }


@pytest.mark.parametrize(("content", "reason"), spoilt_files().values(), ids=spoilt_files())
def test_damaged_newer_and_foreign_files_are_refused(tmp_path, content, reason):
    path = tmp_path / "weights.h5"
    path.write_bytes(content)
    result = node(READER, path, "/clusters/weights_mean")
    assert result.returncode == 1
    assert reason in result.stderr
    assert result.stdout == ""


def test_a_newer_minor_version_is_read(tmp_path):
    path = tmp_path / "weights.h5"
    path.write_bytes(seal(bytes(unseal(GOLDEN.read_bytes())[0]).replace(b"1.0.0", b"1.7.0")))
    assert_same(read(path), path)
