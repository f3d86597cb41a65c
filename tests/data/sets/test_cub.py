import numpy as np
import pytest
from PIL import Image

from embedcam.data import load
from embedcam.data.sets.cub import cub
from embedcam.errors import DataError

CLASSES = ["001.Albatross", "002.Auklet", "003.Bunting", "004.Cardinal"]


@pytest.fixture
def tree(tmp_path):
    """Four classes of three birds; the first bird of each is for the official test."""
    root = tmp_path / "CUB_200_2011"
    pictures = [f"{name}/{name[4:]}_{i}.jpg" for name in CLASSES for i in range(3)]
    for name in pictures:
        file = root / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (200, 0, 0)).save(file)
        mask = tmp_path / "segmentations" / name.replace(".jpg", ".png")
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array([[0, 51, 127, 128, 204, 255]] * 4, dtype=np.uint8)).save(mask)

    def write(name, values):
        (root / name).write_text("".join(f"{i} {value}\n" for i, value in enumerate(values, start=1)))

    write("classes.txt", CLASSES)
    write("images.txt", pictures)
    write("image_class_labels.txt", [label for label in (1, 2, 3, 4) for _ in range(3)])
    write("train_test_split.txt", [0, 1, 1] * 4)
    return tmp_path


def test_standard_protocol_is_the_official_split(tree):
    train, test = cub(tree, "train"), cub(tree, "test")
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and test.labels.tolist() == [0, 1, 2, 3]
    assert test.ids[0] == "001.Albatross/Albatross_0.jpg"
    assert train.names == test.names == tuple(CLASSES)
    assert len(cub(tree, "all")) == 12
    assert train.image(0).size == (6, 4)


def test_metric_protocol_splits_the_classes(tree):
    train, test = cub(tree, "train", "metric"), cub(tree, "test", "metric")
    assert train.labels.tolist() == [0] * 3 + [1] * 3 and test.labels.tolist() == [2] * 3 + [3] * 3
    assert train.names == test.names == tuple(CLASSES)
    assert len(cub(tree, "all", "metric")) == 12


def test_object_is_where_more_than_half_of_the_annotators_agree(tree):
    samples = cub(tree)
    assert samples.has_masks
    assert samples.mask(0)[0].tolist() == [False, False, False, True, True, True]
    assert samples.ignore(0) is None


def test_path_may_be_the_inner_folder_and_segmentations_may_lie_inside(tree):
    inner = tree / "CUB_200_2011"
    assert cub(inner).ids == cub(tree).ids and cub(inner).has_masks
    (tree / "segmentations").rename(inner / "segmentations")
    assert cub(tree).has_masks and cub(inner).mask(0).any()


def test_without_segmentations_there_are_no_masks(tree):
    (tree / "segmentations").rename(tree / "elsewhere")
    assert not cub(tree).has_masks and cub(tree).mask(0) is None


def test_boxes_are_the_masks_without_segmentations_and_follow_the_split(tree):
    root = tree / "CUB_200_2011"
    (root / "bounding_boxes.txt").write_text("".join(f"{i} {i % 3}.0 1.0 2.0 1.5\n" for i in range(1, 13)))
    assert (cub(tree).mask_kind, cub(tree).mask(0).sum()) == ("mask", 12)
    (tree / "segmentations").rename(tree / "elsewhere")
    samples = cub(tree)
    assert samples.has_masks
    assert samples.mask_kind == "box"
    # The second picture, the first of the training split: columns 2 and 3, rows 1 and, touched by half, 2.
    assert np.argwhere(samples.mask(0)).tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]
    (root / "bounding_boxes.txt").write_text("".join(f"{i} 9.0 1.0 2.0 1.5\n" for i in range(1, 13)))
    with pytest.raises(DataError, match="outside the picture"):
        cub(tree).mask(0)
    (root / "bounding_boxes.txt").write_text("1 9.0 1.0 2.0 1.5\n")
    with pytest.raises(DataError, match=r"id 2 is missing in .*bounding_boxes\.txt"):
        cub(tree)
    (root / "bounding_boxes.txt").write_text("1 9.0 1.0 2.0\n")
    with pytest.raises(DataError, match="line 1: expected '<id> <x> <y> <width> <height>'"):
        cub(tree)


def test_pseudo_masks_are_named(tree):
    root = tree / "CUB_200_2011"
    with pytest.raises(DataError, match="no pseudo masks"):
        cub(tree, pseudo=True)
    (tree / "segmentations").rename(root / "masks")
    samples = load(f"cub-pseudo:{tree}")
    assert samples.mask_kind == "pseudo mask"
    assert samples.mask(0)[0].tolist() == [False, False, False, True, True, True]


def test_parts_are_keypoints_of_the_split(tree):
    folder = tree / "CUB_200_2011" / "parts"
    assert cub(tree).keypoints is None
    folder.mkdir()
    (folder / "parts.txt").write_text("1 back\n2 left eye\n3 tail\n")
    lines = [f"{i} {part} {i}.0 {part}.5 {int(part != 3)}" for i in range(1, 13) for part in (1, 2, 3)]
    (folder / "part_locs.txt").write_text("\n".join(lines) + "\n")
    keypoints = cub(tree).keypoints
    assert keypoints.names == ("back", "left eye", "tail")
    assert keypoints.groups == ("body", "head", "tail")
    assert keypoints.places[0, :2].tolist() == [[2, 1.5], [2, 2.5]]
    assert np.isnan(keypoints.places[0, 2]).all()
    (folder / "part_locs.txt").write_text("1 4 0.0 0.0 1\n")
    with pytest.raises(DataError, match="line 1: expected '<id> <part> <x> <y> <visible>'"):
        cub(tree)


def test_missing_data_set_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"no CUB_200_2011 .* 'python scripts/download_cub\.py"):
        cub(tmp_path)


def test_unknown_protocol_is_an_error(tree):
    with pytest.raises(DataError, match="unknown protocol 'zero-shot'; choose one of standard, metric"):
        cub(tree, "train", "zero-shot")


@pytest.mark.parametrize(
    "file, line, message",
    [
        ("images.txt", "13", r"images\.txt, line 13: expected '<id> <class>/<file>'"),
        ("images.txt", "13 ../../x.jpg", r"images\.txt, line 13"),
        ("images.txt", "13 /x.jpg", r"images\.txt, line 13"),
        ("images.txt", "12 a/x.jpg", r"images\.txt, line 13: duplicate id 12"),
        ("images.txt", "13 a/x.jpg", r"id 13 is in only one of .*images\.txt and image_class_labels\.txt"),
        ("image_class_labels.txt", "13 9", r"image_class_labels\.txt, line 13: .*found '13 9'"),
        ("train_test_split.txt", "13 2", r"train_test_split\.txt, line 13: expected '<id> <0 or 1>'"),
        ("train_test_split.txt", "13 1", r"id 13 is in only one of .* train_test_split\.txt"),
        ("classes.txt", "x y", r"classes\.txt, line 5: expected '<id> <name>', found 'x y'"),
    ],
)
def test_damaged_index_file_is_named_with_its_line(tree, file, line, message):
    with (tree / "CUB_200_2011" / file).open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(DataError, match=message):
        cub(tree)


@pytest.mark.parametrize("file", ["classes.txt", "image_class_labels.txt", "train_test_split.txt"])
def test_missing_or_empty_index_file_is_named(tree, file):
    path = tree / "CUB_200_2011" / file
    path.write_text("")
    with pytest.raises(DataError, match=f"{file} is empty"):
        cub(tree)
    path.unlink()
    with pytest.raises(DataError, match=f"cannot read .*{file}"):
        cub(tree)
