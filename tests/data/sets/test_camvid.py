import numpy as np
import pytest
from PIL import Image

from embedcam.data import load
from embedcam.data.sets.camvid import CLASSES, COLORS, UNLABELLED, camvid, read_label_image
from embedcam.errors import DataError

LABELS = np.array([[0, 0, 3, 11], [8, 8, 3, 11]], dtype=np.uint8)


@pytest.fixture
def tree(tmp_path):
    """One picture in train, two in val, one in test; the index of the road tells the label images apart."""
    for number, name in enumerate(("train/a.png", "val/b.jpg", "val/c.png", "test/d.png")):
        picture = tmp_path / "images" / name
        label = (tmp_path / "labels" / name).with_suffix(".png")
        for file in (picture, label):
            file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 2), (number, 0, 0)).save(picture)
        Image.fromarray(np.where(LABELS == 3, number, LABELS).astype(np.uint8)).save(label)
    return tmp_path


def test_every_split_has_its_own_pictures(tree):
    assert camvid(tree).ids == ("train/a.png",)
    assert camvid(tree, "val").ids == ("val/b.jpg", "val/c.png")
    assert camvid(tree, "all").ids == ("train/a.png", "val/b.jpg", "val/c.png", "test/d.png")


def test_label_image_holds_the_indices_of_the_file(tree):
    samples = camvid(tree, "test")
    assert samples.label_image(0).tolist() == LABELS.tolist() and samples.label_image(0).dtype == np.uint8
    assert samples.names == CLASSES and samples.labels is None and not samples.has_masks


def test_unlabelled_pixels_are_the_ignore_mask(tree):
    assert camvid(tree).ignore(0).tolist() == [[False, False, False, True]] * 2


def test_subset_keeps_pictures_and_label_images_together(tree):
    samples = camvid(tree, "all").subset([2, 1])
    assert samples.ids == ("val/c.png", "val/b.jpg")
    assert [samples.label_image(row)[0, 2] for row in (0, 1)] == [2, 1]


def test_palette_label_image_is_read_by_index(tmp_path):
    image = Image.fromarray(LABELS, mode="P")
    image.putpalette([value for color in COLORS for value in color])
    image.save(tmp_path / "labels.png")
    assert read_label_image(tmp_path / "labels.png", (4, 2)).tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    "array, size, message",
    [
        (LABELS, (5, 2), r"labels.png is 4 x 2 pixels but its picture is 5 x 2"),
        (np.full((2, 4), 12, np.uint8), (4, 2), r"has index 12, expected 0 to 11 \(11: unlabelled\)"),
        (np.zeros((2, 4, 3), np.uint8), (4, 2), "has 3 channels, expected one index per pixel"),
    ],
)
def test_wrong_label_image_is_an_error_that_names_it(tmp_path, array, size, message):
    Image.fromarray(array).save(tmp_path / "labels.png")
    with pytest.raises(DataError, match=message):
        read_label_image(tmp_path / "labels.png", size)


def test_damaged_label_image_is_an_error(tree):
    (tree / "labels" / "test" / "d.png").write_bytes(b"no png")
    with pytest.raises(DataError, match=r"d\.png is not an image"):
        camvid(tree, "test").label_image(0)


def test_missing_label_image_is_named(tree):
    (tree / "labels" / "val" / "c.png").unlink()
    with pytest.raises(DataError, match=r"picture val/c\.png of .* put it at .*labels/val/c\.png"):
        camvid(tree, "val")
    (tree / "labels" / "test" / "d.png").unlink()  # none at all
    with pytest.raises(DataError, match=r"picture test/d\.png"):
        camvid(tree, "test")


def test_missing_or_empty_split_says_what_is_expected(tree, tmp_path):
    with pytest.raises(DataError, match=r"gone/images/train is missing; it needs images/<split>/\*"):
        camvid(tmp_path / "gone")
    (tree / "images" / "test" / "d.png").unlink()
    with pytest.raises(DataError, match=r"the test split of .* has no pictures"):
        camvid(tree, "test")


def test_spec_reaches_every_split(tree):
    assert len(load(f"camvid:{tree}")) == 1
    assert len(load(f"camvid:{tree}@val")) == len(load(f"camvid:{tree}", "val")) == 2
    assert len(load(f"camvid:{tree}@all", "test")) == 4


@pytest.mark.parametrize("spec, split", [("camvid:{}@training", "train"), ("camvid:{}", "training")])
def test_unknown_split_lists_those_of_camvid(tree, spec, split):
    with pytest.raises(DataError, match=r"unknown split 'training'; .*train, val, test, all"):
        load(spec.format(tree), split)


def test_classes_have_their_official_order_and_colours():
    assert CLASSES.index("Road") == 3 and CLASSES.index("Car") == 8 and CLASSES[UNLABELLED - 1] == "Bicyclist"
    assert len(set(COLORS)) == len(CLASSES) + 1
    assert COLORS[CLASSES.index("Road")] == (128, 64, 128) and COLORS[UNLABELLED] == (0, 0, 0)
