import logging
import shutil
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder

from embedcam.data.sets.folder import folder
from embedcam.errors import DataError


def draw(path, color=(10, 20, 30), size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def draw_mask(path, value=255, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size[::-1], dtype=np.uint8)
    mask[1, 2] = value
    Image.fromarray(mask).save(path)


@pytest.fixture
def animals(tmp_path):
    root = tmp_path / "animals"
    for name in ("cat", "dog"):
        for i in range(5):
            draw(root / "images" / name / f"{i}.png", color=(i, 0, 0))
    return root


def test_classes_are_the_sorted_folders(animals):
    samples = folder(animals, "all")
    assert samples.names == ("cat", "dog")
    assert samples.ids[:2] == ("cat/0.png", "cat/1.png") and len(samples) == 10
    assert samples.labels.tolist() == [0] * 5 + [1] * 5 and samples.labels.dtype == np.int64
    assert samples.image(7).getpixel((0, 0)) == (2, 0, 0)
    assert not samples.has_masks and samples.mask(0) is None and samples.ignore(0) is None


def test_train_and_test_are_disjoint_and_complete(animals):
    train, test = folder(animals, "train"), folder(animals, "test")
    assert len(train) == 6 and len(test) == 4
    assert sorted(train.ids + test.ids) == sorted(folder(animals, "all").ids)
    assert train.names == test.names == ("cat", "dog")
    assert np.bincount(train.labels).tolist() == [3, 3]


def test_split_does_not_depend_on_where_the_folder_lies(animals, tmp_path):
    moved = tmp_path / "else" / "where"
    shutil.copytree(animals, moved)
    as_image_folder = tmp_path / "image_folder"
    shutil.copytree(animals / "images", as_image_folder)
    assert folder(animals).ids == folder(moved).ids == folder(as_image_folder).ids


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\\0", exclude_categories=["Cc", "Cs"]), min_size=1)
NAMES = NAMES.map(lambda name: unicodedata.normalize("NFC", name)).filter(lambda name: 0 < len(name.encode()) < 100)
NAMES = NAMES.filter(lambda name: not name.startswith("."))
TREES = st.dictionaries(NAMES, st.lists(NAMES, max_size=6, unique=True), min_size=1, max_size=4)


@given(TREES)
@settings(max_examples=50)
def test_any_tree_of_names_is_listed_once_sorted_and_split_without_overlap(tree):
    with tempfile.TemporaryDirectory() as root:
        for name, files in tree.items():
            for file in files:
                (Path(root) / "images" / name).mkdir(parents=True, exist_ok=True)
                (Path(root) / "images" / name / f"{file}.png").touch()
        wanted = sorted(name for name, files in tree.items() if files)
        if not wanted:
            with pytest.raises(DataError, match="no pictures"):
                folder(root, "all")
            return
        samples = folder(root, "all")
        assert samples.names == tuple(wanted)
        assert list(samples.ids) == [
            f"{name}/{file}" for name in wanted for file in sorted(f"{f}.png" for f in tree[name])
        ]
        assert [samples.names[label] for label in samples.labels] == [id.split("/")[0] for id in samples.ids]
        parts = []
        for split in ("train", "test"):
            try:
                parts += folder(root, split).ids
            except DataError as error:  # too few pictures for two parts
                assert "is empty" in str(error)
        assert sorted(parts) == sorted(samples.ids)


def test_masks_and_ignore_masks_are_found_by_stem(animals):
    draw_mask(animals / "masks" / "dog" / "3.png", value=1)
    draw_mask(animals / "ignore" / "dog" / "3.png")
    samples = folder(animals, "all")
    row = samples.ids.index("dog/3.png")
    assert samples.has_masks and np.argwhere(samples.mask(row)).tolist() == [[1, 2]]
    assert np.argwhere(samples.ignore(row)).tolist() == [[1, 2]]
    assert samples.mask(0) is None and samples.ignore(0) is None


def test_wrong_masks_are_errors_when_they_are_read(animals):
    draw_mask(animals / "masks" / "cat" / "0.png", size=(4, 6))
    draw_mask(animals / "masks" / "cat" / "1.png", value=0)
    samples = folder(animals, "all")
    with pytest.raises(DataError, match="4 x 6 pixels but its picture is 6 x 4"):
        samples.mask(0)
    with pytest.raises(DataError, match="marks no pixel"):
        samples.mask(1)


def test_ignore_mask_may_be_all_zero(animals):
    draw_mask(animals / "ignore" / "cat" / "0.png", value=0)
    assert not folder(animals, "all").ignore(0).any()


def test_masks_that_belong_to_no_picture_are_warned_about(animals, caplog):
    draw_mask(animals / "masks" / "cat" / "0_mask.png")
    assert not folder(animals, "all").has_masks
    assert "no file in" in caplog.text and "0.png" in caplog.text


def test_same_stem_is_an_error_only_where_a_mask_would_be_shared(animals):
    draw(animals / "images" / "cat" / "0.jpg")
    assert len(folder(animals, "all")) == 11
    draw_mask(animals / "masks" / "cat" / "0.png")
    with pytest.raises(DataError, match=r"cat/0\.jpg and cat/0\.png would share the mask"):
        folder(animals, "all")


def test_class_without_pictures_is_left_out_with_a_warning(animals, caplog):
    (animals / "images" / "bird").mkdir()
    (animals / "images" / ".hidden").mkdir()
    with caplog.at_level(logging.WARNING, logger="embedcam"):
        assert folder(animals).names == ("cat", "dog")
    assert "bird has no pictures" in caplog.text and ".hidden" not in caplog.text


def test_class_with_one_picture_trains(animals):
    draw(animals / "images" / "bird" / "0.png")
    assert "bird/0.png" in folder(animals, "train").ids
    assert folder(animals, "test").names == ("bird", "cat", "dog")


@pytest.mark.parametrize("inside", ["", "images"])
def test_pictures_without_class_folders_are_unlabelled(tmp_path, inside):
    for i in range(5):
        draw(tmp_path / inside / f"{i}.png")
    samples = folder(tmp_path, "train")
    assert len(samples) == 3 and samples.labels is None and samples.names == ()
    assert set(samples.ids) < {f"{i}.png" for i in range(5)}


def test_masks_of_unlabelled_pictures(tmp_path):
    draw(tmp_path / "images" / "a.jpg")
    draw_mask(tmp_path / "masks" / "a.png")
    assert folder(tmp_path).mask(0).sum() == 1


def test_stray_pictures_beside_class_folders_are_counted_not_taken(animals, caplog):
    draw(animals / "images" / "stray.png")
    assert len(folder(animals, "all")) == 10
    assert "pictures beside class folders 1" in caplog.text


def test_sub_folders_belong_to_their_class_as_in_torchvisions_image_folder(animals, caplog):
    draw(animals / "images" / "cat" / "batch" / "more" / "0.png")
    draw_mask(animals / "masks" / "cat" / "batch" / "more" / "0.png")
    samples = folder(animals, "all")
    expected = ImageFolder(animals / "images")
    assert [(str(file), label) for file, label in zip(samples.files, samples.labels, strict=True)] == expected.samples
    assert samples.mask(samples.ids.index("cat/batch/more/0.png")).sum() == 1
    assert not caplog.records


def test_files_that_are_left_out_are_counted_by_kind(animals, caplog):
    for number in range(3):
        (animals / "images" / "cat" / f"{number}.HEIC").touch()
    (animals / "images" / "dog" / "film.mp4").touch()
    (animals / "images" / "dog" / "notes.txt").touch()
    assert len(folder(animals, "all")) == 10
    assert [record.getMessage() for record in caplog.records] == [
        f"4 files or folders left out of {animals / 'images'}: .heic 3, .mp4 1"
    ]


@pytest.mark.parametrize("inside", ["", "images"])
@pytest.mark.parametrize("test", ["test", "val", "valid"])
def test_train_and_test_folders_are_the_split_in_spite_of_a_stray_picture(tmp_path, inside, test):
    for part, count in (("train", 3), (test, 2)):
        for name in ("cat", "dog"):
            for i in range(count):
                draw(tmp_path / inside / part / name / f"{i}.png")
    draw(tmp_path / inside / "preview.png")
    whole, samples = folder(tmp_path, "all"), folder(tmp_path, "test")
    assert len(whole) == 10 and whole.names == samples.names == ("cat", "dog")
    assert samples.ids == tuple(f"{test}/{name}/{i}.png" for name in ("cat", "dog") for i in range(2))
    assert samples.labels.tolist() == [0, 0, 1, 1]
    assert set(folder(tmp_path).ids) == set(whole.ids) - set(samples.ids)


def test_a_third_folder_beside_train_and_test_is_in_all_only_and_said(tmp_path, caplog):
    for part in ("train", "val", "test"):
        draw(tmp_path / part / "cat" / "0.png")
    assert [len(folder(tmp_path, split)) for split in ("train", "test", "all")] == [1, 1, 3]
    assert "the test split is test; val is in @all only" in caplog.text


def test_classes_named_like_a_split_among_others_are_classes(tmp_path):
    for name in ("train", "test", "bus"):
        draw(tmp_path / name / "0.png")
    assert folder(tmp_path, "all").names == ("bus", "test", "train")


def test_two_levels_of_folders_are_explained(tmp_path, caplog):
    for name in ("animals/cat", "animals/dog", "plants/rose"):
        draw(tmp_path / "images" / name / "0.png")
    assert folder(tmp_path, "all").names == ("animals", "plants")
    assert "its classes are animals, plants, and sub-folders such as cat, dog, rose belong to them" in caplog.text


def test_own_split_is_used(animals):
    (animals / "train.txt").write_text("dog/1.png\ncat/0.png\n\n")
    (animals / "test.txt").write_bytes(b"\xef\xbb\xbfcat\\4.png\r\n./dog/2.png\r\n")
    assert folder(animals, "train").ids == ("cat/0.png", "dog/1.png")
    assert folder(animals, "test").ids == ("cat/4.png", "dog/2.png")
    assert len(folder(animals, "all")) == 10


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_lists_are_read_in_the_encoding_of_their_mark(animals, encoding):
    draw(animals / "images" / "cat" / "\u732b.png")
    (animals / "train.txt").write_text("cat/\u732b.png\ndog/1.png\n", encoding=encoding)
    (animals / "test.txt").write_text("cat/4.png\n", encoding=encoding)
    assert folder(animals, "train").ids == ("cat/\u732b.png", "dog/1.png")


@pytest.mark.parametrize(
    "train, test, message",
    [
        ("cat/0.png\ncat/9.png\n", "dog/1.png\n", r"train\.txt, line 2: no picture 'cat/9\.png'"),
        ("cat/0.png\n", "cat/0.png\n", r"cat/0\.png is in both"),
        ("cat/0.png\n", "\n", r"test\.txt lists no picture"),
        ("cat/0.png\n", "\udcff\n", r"test\.txt, line 1: no picture"),
    ],
)
def test_wrong_own_split_is_an_error(animals, train, test, message):
    (animals / "train.txt").write_text(train)
    (animals / "test.txt").write_bytes(test.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=message):
        folder(animals, "test")


def test_half_an_own_split_is_not_used_and_warned_about(animals, caplog):
    expected = folder(animals).ids
    (animals / "train.txt").write_text("cat/0.png\n")
    assert folder(animals).ids == expected
    assert "train.txt is not used" in caplog.text


def test_missing_path_and_file_are_errors(tmp_path):
    with pytest.raises(DataError, match=r"gone does not exist"):
        folder(tmp_path / "gone")
    with pytest.raises(DataError, match=r"a\.png is a file"):
        folder(draw(tmp_path / "a.png"))


def test_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no pictures in .*; put them into images/<class>/"):
        folder(tmp_path)


def test_folder_with_pictures_one_level_deeper_says_where_they_are(tmp_path):
    draw(tmp_path / "train" / "cat" / "0.png")
    with pytest.raises(DataError, match=r"one level deeper: use folder:.*train"):
        folder(tmp_path)


def test_empty_split_is_an_error(tmp_path):
    draw(tmp_path / "0.png")
    with pytest.raises(DataError, match=r"the test split of .* is empty"):
        folder(tmp_path, "test")
    with pytest.raises(DataError, match="unknown split"):
        folder(tmp_path, "val")


def test_file_name_that_is_not_utf8_is_an_error(tmp_path):
    try:
        draw(tmp_path / "images" / "cat" / "a.png").rename(tmp_path / "images" / "cat" / "\udcff.png")
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(DataError, match="is not UTF-8; rename it"):
        folder(tmp_path)
