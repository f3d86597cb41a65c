import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from embedcam.builder.build import build_database
from embedcam.data import batches, load, load_gallery
from embedcam.data.preprocess import Preprocess
from embedcam.data.sets.wds import Names, _expanded, wds
from embedcam.errors import DataError


def encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def png(level=0, size=(3, 2)):
    return encoded(Image.new("RGB", size, (level, 0, 0)))


@pytest.fixture
def shard(tmp_path):
    def write(files, name="a.tar"):
        with tarfile.open(tmp_path / name, "w") as archive:
            for file, content in files.items() if isinstance(files, dict) else files:
                content = content.encode() if isinstance(content, str) else content
                info = tarfile.TarInfo(file)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return str(tmp_path / name)

    return write


@pytest.fixture
def shards_of_folder(shard, folder):
    """Write the pictures of `folder` into three shards, in its order."""
    samples = load(f"folder:{folder}@all")
    for number, rows in enumerate(np.array_split(np.arange(len(samples)), 3)):
        files = []
        for row in rows:
            name, content = samples.ids[row], (folder / "images" / samples.ids[row]).read_bytes()
            files += [(name, content), (name.replace(".png", ".cls"), samples.names[samples.labels[row]])]
        pattern = shard(files, f"shard-{number:03}.tar")
    return pattern.replace("002", "{000..002}")


@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_shards_of_a_folder_are_the_same_data_set(shards_of_folder, folder, split):
    ours, theirs = (load(f"{spec}@{split}") for spec in (f"wds:{shards_of_folder}", f"folder:{folder}"))
    assert tuple(ours.ids) == theirs.ids and ours.names == theirs.names
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    for index in range(len(theirs)):
        np.testing.assert_array_equal(np.asarray(ours.image(index)), np.asarray(theirs.image(index)))
    assert not ours.has_masks and ours.mask(0) is None and ours.ignore(0) is None


def test_shards_of_a_folder_give_the_same_database_byte_for_byte(shards_of_folder, folder, net, tmp_path):
    files = []
    for spec in (f"wds:{shards_of_folder}", f"folder:{folder}"):
        files.append(tmp_path / f"{len(files)}.h5")
        build_database(net, spec, clusters=3, top_k=5, pairs=3).save(files[-1])
    assert files[0].read_bytes() == files[1].read_bytes()


def test_shards_with_masks_have_the_same_masks_as_the_folder(shard, folder):
    theirs = load(f"folder:{folder}@all")
    files = []
    for name in theirs.ids:
        content, mask = ((folder / kind / name).read_bytes() for kind in ("images", "masks"))
        files += [(name, content), (name.replace(".png", ".mask.png"), mask), (name.replace(".png", ".cls"), "x")]
    ours = load(f"wds:{shard(files)}@all")
    assert ours.has_masks and ours.ids[0] == theirs.ids[0]
    for index in range(len(theirs)):
        np.testing.assert_array_equal(ours.mask(index), theirs.mask(index))
        np.testing.assert_array_equal(np.asarray(ours.image(index)), np.asarray(theirs.image(index)))


def test_a_mask_belongs_to_its_own_picture_whatever_the_order(shard):
    left, right = (Image.new("L", (3, 2)) for _ in range(2))
    left.putpixel((0, 1), 1)
    right.putpixel((2, 0), 255)
    files = {"a.mask.png": encoded(left), "a.png": png(), "b.png": png(), "c.png": png(), "c.mask.png": encoded(right)}
    samples = pickle.loads(pickle.dumps(wds(shard(files), "all")))
    assert samples.mask(0).tolist() == [[False] * 3, [True, False, False]]
    assert samples.mask(1) is None
    assert samples.mask(2).tolist() == [[False, False, True], [False] * 3]
    swapped = samples.subset([2, 1])
    assert swapped.has_masks and swapped.mask(0).tolist() == samples.mask(2).tolist() and swapped.mask(1) is None
    assert not samples.subset([1]).has_masks


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (b"no picture", "of a.png in .*a.tar is no image in a known format|of a.png in .*a.tar is not an image"),
        (png(9, size=(2, 2)), "mask of a.png in .*a.tar is 2 x 2 pixels but its picture is 3 x 2"),
        (png(0), "mask of a.png in .*a.tar marks no pixel as object"),
    ],
)
def test_a_mask_that_cannot_be_right_is_named(shard, mask, message):
    samples = wds(shard({"a.png": png(), "a.mask.png": mask}), "all")
    with pytest.raises(DataError, match=message):
        samples.mask(0)


def test_the_gallery_of_test_images_are_the_training_images(shards_of_folder):
    assert tuple(load_gallery(f"wds:{shards_of_folder}@test").ids) == tuple(wds(shards_of_folder, "train").ids)


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("a.tar", ["a.tar"]),
        ("s-{08..11}.tar", ["s-08.tar", "s-09.tar", "s-10.tar", "s-11.tar"]),
        ("s-{8..11}", ["s-8", "s-9", "s-10", "s-11"]),
        ("s-{0..10}", [f"s-{number}" for number in range(11)]),
        ("{b,a}/{0..1}", ["b/0", "b/1", "a/0", "a/1"]),
        ("x{,y}", ["x", "xy"]),
        ("{1..2,3}", ["1..2", "3"]),
        ("a{b}c{2..1}", []),
        ("a{b}{}", ["a{b}{}"]),
    ],
)
def test_braces_are_written_out_as_a_shell_does(pattern, names):
    assert list(_expanded(pattern)) == names


def test_pictures_have_their_own_label_and_keep_the_shards_order(shard):
    shard(
        {"b.png": png(1), "b.cls": "dog\n", "a.cls": "cat".encode("utf-16"), "a.txt": "a caption", "a.png": png(2)},
        "0.tar",
    )
    pattern = shard({"c.json": json.dumps({"label": "cat", "width": 3}), "c.png": png(3)}, "1.tar")
    samples = wds(pattern.replace("1.tar", "{0,1}.tar"), "all")
    assert list(samples.ids) == ["b.png", "a.png", "c.png"]
    assert [samples.names[label] for label in samples.labels] == ["dog", "cat", "cat"]
    assert [samples.image(i).getpixel((0, 0)) for i in range(3)] == [(1, 0, 0), (2, 0, 0), (3, 0, 0)]


@pytest.mark.parametrize(
    "labels, names",
    [
        (["10", "9", "-1"], ("-1", "9", "10")),
        ([{"label": 10}, "9", {"label": "-1"}], ("-1", "9", "10")),
        (["10", "9", "007"], ("007", "10", "9")),
        (["10", "b", "9"], ("10", "9", "b")),
        (["é", "z", "a"], ("a", "z", "é")),
    ],
)
def test_classes_are_sorted_numbers_by_value(shard, labels, names):
    files = {}
    for index, label in enumerate(labels):
        field, text = ("cls", label) if isinstance(label, str) else ("json", json.dumps(label))
        files |= {f"{index}.png": png(), f"{index}.{field}": text}
    samples = wds(shard(files), "all")
    assert samples.names == names
    assert [samples.names[label] for label in samples.labels] == [
        label if isinstance(label, str) else str(label["label"]) for label in labels
    ]


@pytest.mark.parametrize("beside", [{}, {"a.json": "{}"}, {"a.json": "[1]"}, {"a.json": '{"label": null}'}])
def test_without_labels_it_is_an_unlabelled_data_set(shard, beside):
    samples = wds(shard({"a.png": png(), **beside, "b.png": png(), "b.txt": "two"}), "all")
    assert samples.labels is None and samples.names == () and len(samples) == 2


def test_sixty_percent_are_for_training_whatever_the_shards(shard):
    whole = {f"{i}.{field}": png() if field == "png" else f"{i % 2}" for i in range(20) for field in ("png", "cls")}
    one, parts = shard(whole), list(whole.items())
    shard(parts[20:], "0.tar")
    two = shard(parts[:20], "1.tar").replace("1.tar", "{0,1}.tar")
    train, test = wds(one, "train"), wds(one, "test")
    assert np.bincount(train.labels).tolist() == [6, 6] and np.bincount(test.labels).tolist() == [4, 4]
    assert set(wds(two, "train").ids) == set(train.ids) and set(wds(two, "test").ids) == set(test.ids)


def test_hidden_files_and_samples_without_picture_are_left_out(shard, caplog):
    files = {"._a.png": b"of a Mac", "README": "no dot", "x/a.PNG": png(7), "b.txt": "no picture", "c.mask.png": png()}
    samples = wds(shard(files), "all")
    assert list(samples.ids) == ["x/a.PNG"] and samples.image(0).getpixel((0, 0)) == (7, 0, 0)
    assert "2 samples of" in caplog.text and "a.tar have no picture and are skipped" in caplog.text


def test_a_dot_in_a_folder_is_no_extension(shard):
    samples = wds(shard({"v1.0/a.png": png(), "v1.0/a.cls": "x", "v1.1/a.png": png(), "v1.1/a.cls": "y"}), "all")
    assert list(samples.ids) == ["v1.0/a.png", "v1.1/a.png"] and samples.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "files, message",
    [
        ([], "no picture in .*a sample is key.jpg"),
        ([("a.txt", "x")], "no picture in"),
        ([("a.png", png()), ("a.cls", "1"), ("b.png", png())], "sample b.png in .* has no label, others have"),
        ([("a.png", png()), ("b.png", png()), ("a.png", png())], "two samples are named 'a', in .*a.tar"),
        ([("a.png", png()), ("b.png", png()), ("a.jpg", png())], "two samples are named 'a'"),
        ([("a.png", png()), ("a.png", png())], "two files 'a.png' in a row"),
        ([("a.png", png()), ("a.jpg", png())], "sample 'a' of .* has 2 pictures; keep one"),
        ([("a.png", png()), ("a.cls", "")], "label of 'a' of .* cannot be used: it is ''; write a number"),
        ([("a.png", png()), ("a.cls", "two\nlines")], "it is 'two.*lines'"),
        ([("a.png", png()), ("a.cls", b"\xff")], "can't decode"),
        ([("a.png", png()), ("a.cls", "x" * 1001)], "it is 'xxx"),
        ([("a.png", png()), ("a.cls", "x" * (2**20 + 1))], "it has 1,048,577 bytes"),
        ([("a.png", png()), ("a.json", "{")], "cannot be used: Expecting"),
        ([("a.png", png()), ("a.json", '{"label": true}')], "it is True"),
        ([("a.png", png()), ("a.json", '{"label": 0.5}')], "it is 0.5"),
        ([("a.png", png()), ("a.json", '{"label": "\\ud800"}')], "label of 'a'"),
        ([("a.png", png()), ("a.json", "[" * 100_000)], "label of 'a'"),
        ([("../a.png", png())], "leads out of its folder"),
        ([("/etc/a.png", png())], "leads out of its folder"),
        ([("C:\\a.png", png())], "leads out of its folder"),
        ([("a\nb.png", png())], "or is not text"),
    ],
)
def test_what_cannot_be_used_is_one_clear_error(shard, files, message):
    with pytest.raises(DataError, match=f"(?s){message}"):
        wds(shard(files), "all")


def test_equal_names_in_two_shards_are_named_with_both(shard):
    shard({"a.png": png()}, "0.tar")
    pattern = shard({"a.png": png()}, "1.tar").replace("1.tar", "{0..1}.tar")
    with pytest.raises(DataError, match=r"two samples are named 'a', in .*0\.tar and in .*1\.tar"):
        wds(pattern)


def test_missing_shards_are_named(shard, tmp_path):
    shard({"a.png": png()}, "0.tar")
    for pattern, message in [
        (f"{tmp_path}/none.tar", "no shard matches wds:.*none.tar: .*none.tar does not exist; name existing tar files"),
        (f"{tmp_path}/{{0..99999999999}}.tar", "1.tar does not exist"),
        (str(tmp_path), "is a folder"),
    ]:
        with pytest.raises(DataError, match=message):
            wds(pattern)


def test_a_split_that_is_empty_is_an_error(shard):
    pattern = shard({"a.png": png()})
    with pytest.raises(DataError, match="the test split of .*a.tar is empty"):
        load(f"wds:{pattern}@test")
    with pytest.raises(DataError, match="unknown split 'val'"):
        wds(pattern, "val")


def test_a_picture_that_cannot_be_read_is_named_and_left_out(shard, caplog):
    pattern = shard({"a.png": b"no picture", "b.png": png(9), "c.png": b"", "d.png": png()[:40]})
    samples = wds(pattern, "all")
    with pytest.raises(DataError, match="a.png in .*a.tar is not an image in a supported format"):
        samples.image(0)
    with pytest.raises(DataError, match="c.png in .*a.tar is empty"):
        samples.image(2)
    ((indices, _),) = batches(samples, Preprocess((4, 4)), 4)
    assert indices.tolist() == [1]
    assert caplog.text.count("skipped") == 3


def test_a_shard_that_changed_or_went_is_named(shard, tmp_path):
    samples = wds(shard({"a.png": png()}), "all")
    (tmp_path / "a.tar").write_bytes(b"short")
    with pytest.raises(DataError, match="a.tar has become shorter since it was scanned"):
        samples.image(0)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(DataError, match="cannot read .*a.tar: No such file"):
        samples.image(0)


def test_a_subset_can_be_sent_to_another_process(shard):
    files = {f"{i}.{field}": png(i) if field == "png" else str(i) for i in range(4) for field in ("png", "cls")}
    samples = pickle.loads(pickle.dumps(wds(shard(files), "all").subset([3, 0, 3])))
    assert list(samples.ids) == ["3.png", "0.png", "3.png"] and samples.labels.tolist() == [3, 0, 3]
    assert samples.names == ("0", "1", "2", "3") and len(samples.subset([])) == 0
    assert [samples.image(i).getpixel((0, 0))[0] for i in range(3)] == [3, 0, 3]


def test_names_are_a_sequence_of_text():
    names = Names("a\0ö/b\0c\0".encode(), np.array([0, 2, 7]))
    assert list(names) == ["a", "ö/b", "c"] and names[-1] == "c" and list(names[1:]) == ["ö/b", "c"]
    assert "ö/b" in names
    with pytest.raises(IndexError):
        names[3]
