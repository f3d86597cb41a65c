"""From what a user types or passes to embeddings."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from embedcam.errors import DatabaseError, DataError
from embedcam.explain.references import References

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)


@pytest.fixture
def references(spread):
    net, db = spread
    return References(net, db, net.preprocess)


def test_a_label_stands_for_the_clusters_in_which_it_is_the_most_common(spread, references):
    _, db = spread
    for index, label in enumerate(db.label_names):
        found = references.find(label)
        assert found.clusters.tolist() == np.flatnonzero(db.label_histogram.argmax(axis=1) == index).tolist()
        assert not found.each
        assert all(name.startswith(f"label {label}, cluster ") for name in found.names)


def test_a_label_that_is_nowhere_most_common_stands_for_the_cluster_with_its_largest_share(spread):
    net, db = spread
    histogram = np.array([[8, 0, 2], [9, 0, 1], [0, 3, 2], [0, 5, 1]])
    db = replace(db, label_histogram=histogram)
    assert References(net, db, net.preprocess).find(db.label_names[2]).clusters.tolist() == [2]
    with pytest.raises(DatabaseError, match="no training image has the label 'bee'; see embedcam inspect"):
        db.clusters_of("bee")
    with pytest.raises(DatabaseError, match="without labels"):
        replace(db, label_names=None, label_histogram=None, exemplars=None).clusters_of("class0")


@pytest.mark.parametrize("value", [2, np.int64(2), "2", "cluster:2"])
def test_a_number_is_a_cluster(spread, references, value):
    np.testing.assert_array_equal(references.find(value).embeddings, spread[1].centroids[2:3])


@pytest.mark.parametrize("values", [[3, 0, 1], np.array([3, 0, 1]), torch.tensor([3, 0, 1])])
def test_several_numbers_are_one_cluster_for_each_image(references, values):
    found = references.find(values)
    assert found.each
    assert found.clusters.tolist() == [3, 0, 1]


def test_images_of_every_kind_are_embedded(spread, references, tmp_path):
    net, _ = spread
    picture, path = Image.fromarray(PIXELS), tmp_path / "a.png"
    picture.save(path)
    prepared = net.preprocess(picture)
    with torch.no_grad():
        expected = net(torch.from_numpy(prepared)[None])
    ways = (path, str(path), f"image:{path}", picture, PIXELS, PIXELS[None], prepared, torch.from_numpy(prepared)[None])
    for value in ways:
        torch.testing.assert_close(references.find(value).embeddings, expected, atol=1e-6, rtol=0)
    assert references.find(path).names == [f"image {path}"]
    assert references.find([picture, picture]).each
    torch.testing.assert_close(references.find([picture, picture]).embeddings, expected.expand(2, -1))


def test_embeddings_are_taken_as_directions_of_cosine_networks(references):
    values = np.arange(1, 9, dtype=np.float64)
    found = references.find(values)
    np.testing.assert_allclose(found.embeddings[0], values / np.linalg.norm(values), rtol=1e-6)
    assert references.find(np.stack([values, -values])).each


def test_a_text_that_may_be_two_things_has_to_say_which(spread, tmp_path, monkeypatch):
    net, db = spread
    references = References(net, replace(db, label_names=("1", "monarch", "2")), net.preprocess)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PIXELS).save("monarch", format="PNG")
    with pytest.raises(DataError, match="'1' may be a label or a cluster; write label:1 or cluster:1"):
        references.find("1")
    with pytest.raises(DataError, match="write label:monarch or image:monarch"):
        references.find("monarch")
    assert references.find("cluster:1").clusters.tolist() == [1]
    assert references.find("label:1").names[0].startswith("label 1, cluster")
    with pytest.raises(DataError, match="'monarc' is no label, no cluster and no file; did you mean 'monarch'"):
        references.find("monarc")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (True, "nothing to ask about"),
        (object(), "nothing to ask about"),
        (np.zeros((2, 3, 4, 5, 6)), "nothing to ask about"),
        (np.zeros(8), "length zero"),
        (np.ones(7), "8 dimensions, got 7"),
        (np.full(8, np.nan), "not finite"),
        (4, "no cluster 4; choose one of 0 to 3"),
    ],
)
def test_what_cannot_be_asked_about_is_named(references, value, message):
    with pytest.raises(DataError, match=message):
        references.find(value)
