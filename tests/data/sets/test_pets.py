import sys

import numpy as np
import pytest
from PIL import Image

from embedcam.data.sets.pets import pets
from embedcam.errors import DataError, MissingDependencyError

pytest.importorskip("torchvision")


@pytest.fixture
def tree(tmp_path):
    """Two breeds in torchvision's layout; only the test part has the second."""
    root = tmp_path / "oxford-iiit-pet"
    (root / "images").mkdir(parents=True)
    (root / "annotations" / "trimaps").mkdir(parents=True)
    for name in ("Abyssinian_1", "Abyssinian_2", "american_bulldog_10"):
        Image.new("RGB", (3, 2), (90, 0, 0)).save(root / "images" / f"{name}.jpg")
        trimap = Image.fromarray(np.array([[1, 3, 2], [2, 2, 1]], dtype=np.uint8))
        trimap.save(root / "annotations" / "trimaps" / f"{name}.png")
    (root / "annotations" / "trainval.txt").write_text("Abyssinian_1 1 1 1\n")
    (root / "annotations" / "test.txt").write_text("Abyssinian_2 1 1 1\namerican_bulldog_10 2 2 1\n")
    return tmp_path


def test_trainval_trains_and_test_tests(tree):
    train, test, both = pets(tree, "train"), pets(tree, "test"), pets(tree, "all")
    assert train.ids == ("Abyssinian_1.jpg",) and train.labels.tolist() == [0]
    assert test.ids == ("Abyssinian_2.jpg", "american_bulldog_10.jpg") and test.labels.tolist() == [0, 1]
    assert train.names == test.names == ("Abyssinian", "American Bulldog")
    assert both.ids == train.ids + test.ids and both.labels.dtype == np.int64
    assert test.image(1).size == (3, 2)


def test_trimap_gives_mask_and_ignored_border(tree):
    samples = pets(tree)
    assert samples.has_masks
    assert samples.mask(0).tolist() == [[True, False, False], [False, False, True]]
    assert samples.ignore(0).tolist() == [[False, True, False], [False, False, False]]


def test_path_may_be_the_inner_folder(tree):
    assert pets(tree / "oxford-iiit-pet").ids == pets(tree).ids


def test_missing_data_set_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"no complete Oxford-IIIT Pet in .*OxfordIIITPet\('.*', download=True\)"):
        pets(tmp_path)


def test_damaged_list_is_an_error(tree):
    (tree / "oxford-iiit-pet" / "annotations" / "test.txt").write_text("Abyssinian_2 1\n")
    with pytest.raises(DataError, match="no complete Oxford-IIIT Pet"):
        pets(tree)


def test_missing_torchvision_names_what_to_install(tree, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(MissingDependencyError, match=r"pets needs torchvision.*embedcam\[torch\]"):
        pets(tree)
