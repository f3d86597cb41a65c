import pytest
from PIL import Image

from embedcam.data.catalog import has_split, load, load_gallery, parse
from embedcam.errors import DataError


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("digits", ("digits", "", None)),
        ("digits@test", ("digits", "", "test")),
        ("folder:/a/b", ("folder", "/a/b", None)),
        ("folder:/a/b@all", ("folder", "/a/b", "all")),
        ("folder:/a@b/c:d@train", ("folder", "/a@b/c:d", "train")),
        ("folder:/me@home/x", ("folder", "/me@home/x", None)),
        (r"folder:C:\data", ("folder", r"C:\data", None)),
        ("cub:x@test", ("cub", "x", "test")),
        ("cub-metric:x", ("cub-metric", "x", None)),
        ("pets:~/pets", ("pets", "~/pets", None)),
        ("wds:s-{0..9}.tar@test", ("wds", "s-{0..9}.tar", "test")),
    ],
)
def test_spec_is_taken_apart(spec, expected):
    assert parse(spec) == expected
    assert has_split(spec) == (expected[2] is not None)


@pytest.mark.parametrize(
    "spec, message",
    [
        (
            "digit",
            r"unknown data set 'digit'; did you mean 'digits'\? use one of camvid, cub, cub-metric, cub-pseudo, digits",
        ),
        ("Folder:x", r"did you mean 'folder'\?"),
        ("zebra:x", "unknown data set 'zebra'; use one of camvid, cub"),
        ("", "unknown data set ''"),
        ("folder", "folder needs PATH; write 'folder:PATH'"),
        ("folder:@test", "folder needs PATH"),
        ("wds:", "wds needs PATTERN; write 'wds:PATTERN'"),
        ("digits:x", "digits takes no argument"),
        ("digits@val", "unknown split 'val'; choose one of train, test, all"),
    ],
)
def test_malformed_spec_says_what_is_wrong(spec, message):
    with pytest.raises(DataError, match=message):
        load(spec)


def test_plain_folder_suggests_its_spec(tmp_path):
    with pytest.raises(DataError, match=rf"is a plain path; write 'folder:{tmp_path}@test'"):
        load(f"{tmp_path}@test")


def test_unknown_split_of_a_folder_is_told_from_a_missing_path(tmp_path):
    with pytest.raises(DataError, match="unknown split 'val'"):
        load(f"folder:{tmp_path}@val")
    with pytest.raises(DataError, match="does not exist"):
        load(f"folder:{tmp_path}/gone@val")


def test_split_in_the_spec_overrides_the_argument():
    assert len(load("digits")) == len(load("digits@train", "test")) == 3249
    assert len(load("digits", "test")) == len(load("digits@test")) == 714
    assert len(load("digits@all")) == 3963
    with pytest.raises(DataError, match="unknown split"):
        load("digits", "val")


def test_path_with_signs_and_tilde_is_found(tmp_path, monkeypatch):
    for i in range(5):
        file = tmp_path / "me@home:x" / "images" / "cat" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(file)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert len(load("folder:~/me@home:x@all")) == 5
    assert len(load("folder:~/me@home:x", "test")) == 2


def test_each_kind_reaches_its_reader(tmp_path):
    for kind in ("cub", "cub-metric"):
        with pytest.raises(DataError, match="no CUB_200_2011"):
            load(f"{kind}:{tmp_path}")
    pytest.importorskip("torchvision")
    with pytest.raises(DataError, match="no complete Oxford-IIIT Pet"):
        load(f"pets:{tmp_path}")


def test_the_gallery_of_test_images_are_the_training_images():
    assert load_gallery("digits").ids == load_gallery("digits@test").ids == load("digits@train").ids
    assert load_gallery("digits@train") is None
    assert load_gallery("digits@all") is None
