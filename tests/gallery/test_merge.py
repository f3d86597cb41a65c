"""A merged index is the index of both data sets."""

import h5py
import numpy as np
import pytest
import torch

from embedcam.data import load
from embedcam.errors import DatabaseError, DataError, OutputError
from embedcam.gallery import Gallery, index, merge
from embedcam.nets import EmbeddingNet


@pytest.fixture(scope="module")
def parts(net, folder, tmp_path_factory):
    """An index of all images, and two of its parts, of which the second has fewer classes, in another order."""
    samples, place = load(f"folder:{folder}"), tmp_path_factory.mktemp("parts")
    half = len(samples) // 2
    for name, rows in (("all", range(len(samples))), ("a", range(half)), ("b", range(half, len(samples)))):
        like = None if name == "all" else place / "all.h5"
        index(net, samples.subset(rows), place / f"{name}.h5", like=like)
    return place


def contents(path):
    with h5py.File(path) as file:
        found = {}
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
        return found, dict(file.attrs)


def test_two_indexes_merge_into_that_of_both(parts, tmp_path):
    assert merge([parts / "a.h5", parts / "b.h5"], tmp_path / "merged.h5") == 18
    (merged, attrs), (whole, expected) = contents(tmp_path / "merged.h5"), contents(parts / "all.h5")
    assert {**attrs, "created": ""} == {**expected, "created": ""}
    assert merged.keys() == whole.keys()
    for name in whole:
        if name in ("cells", "scales", "embeddings", "descriptors/codes"):  # batches of other sizes may round otherwise
            np.testing.assert_allclose(merged[name], whole[name], atol=1 if merged[name].dtype == np.int8 else 1e-5)
        else:
            np.testing.assert_array_equal(merged[name], whole[name])


def test_cells_are_copied_as_they_are(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("embedcam.gallery.assembly._BLOCK", 4)
    merge([parts / "b.h5", parts / "a.h5"], tmp_path / "merged.h5")
    merged, b, a = (contents(path)[0] for path in (tmp_path / "merged.h5", parts / "b.h5", parts / "a.h5"))
    for name in ("cells", "scales", "embeddings"):
        np.testing.assert_array_equal(merged[name], np.concatenate([b[name], a[name]]))


def test_classes_keep_their_names(net, folder, tmp_path):
    samples = load(f"folder:{folder}")
    index(net, samples.subset(np.flatnonzero(samples.labels == 2)), tmp_path / "c.h5")
    (tmp_path / "bare").mkdir()
    samples.image(0).save(tmp_path / "bare" / "one.png")
    index(net, load(f"folder:{tmp_path / 'bare'}@all"), tmp_path / "bare.h5")
    with h5py.File(tmp_path / "c.h5", "r+") as file:  # as of another data set
        names = file["label_names/bytes"][()].tobytes().replace(b"class0", b"first0")
        file["label_names/bytes"][...] = np.frombuffer(names, np.uint8)
    index(net, samples.subset(np.flatnonzero(samples.labels == 0)), tmp_path / "a.h5")
    merge([tmp_path / "bare.h5", tmp_path / "c.h5", tmp_path / "a.h5"], tmp_path / "merged.h5")
    with Gallery.open(tmp_path / "merged.h5") as gallery:
        items = gallery.items(range(len(gallery)))
    assert [item.label for item in items] == [None, *6 * ["class2"], *6 * ["class0"]]


def test_an_id_that_two_indexes_have_is_named(parts, tmp_path):
    with pytest.raises(DataError, match=r"all\.h5 and .*b\.h5 have 9 ids in common, such as class"):
        merge([parts / "a.h5", parts / "all.h5", parts / "b.h5"][1:], tmp_path / "merged.h5")
    assert not (tmp_path / "merged.h5").exists()


def test_indexes_of_different_networks_are_not_merged(parts, folder, tmp_path):
    torch.manual_seed(1)
    other = EmbeddingNet("tiny", 8, image_size=40, metric="euclidean").eval()
    index(other, load(f"folder:{folder}").subset([0]), tmp_path / "other.h5")
    with pytest.raises(DatabaseError, match=r"a\.h5 and .*other\.h5 differ: network .* and .*; metric cosine and eucl"):
        merge([parts / "a.h5", tmp_path / "other.h5"], tmp_path / "merged.h5")
    with pytest.raises(DataError, match="no index to merge"):
        merge([], tmp_path / "merged.h5")


def test_a_full_disk_is_told_before(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(OutputError, match=r"merged\.h5 needs .* GB; free some space"):
        merge([parts / "a.h5"], tmp_path / "merged.h5")
