"""Grey masks, and names of masks, are the same to every data set that reads them."""

import io
import logging
import tarfile
import unicodedata

import numpy as np
import pytest
from PIL import Image

from embedcam.data import load
from embedcam.errors import DataError

VOTES = np.array([[0, 51, 102], [153, 204, 255]], dtype=np.uint8)  # of five annotators


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write(files):
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def make_folder(root):
    for name in ("a", "b"):
        write({root / f"images/owl/{name}.png": png(VOTES), root / f"masks/owl/{name}.png": png(VOTES)})
    return f"folder:{root}"


def make_cub(root):
    images = {root / f"{kind}/001.owl/{name}.png": png(VOTES) for kind in ("images", "segmentations") for name in "ab"}
    write(images | {root / "images.txt": "1 001.owl/a.png\n2 001.owl/b.png\n", root / "classes.txt": "1 001.owl\n"})
    write({root / "image_class_labels.txt": "1 1\n2 1\n", root / "train_test_split.txt": "1 1\n2 0\n"})
    return f"cub:{root}"


def make_wds(root):
    with tarfile.open(root / "owls.tar", "w") as archive:
        for name in ("a.png", "a.mask.png", "b.png", "b.mask.png"):
            member = tarfile.TarInfo(name)
            member.size = len(png(VOTES))
            archive.addfile(member, io.BytesIO(png(VOTES)))
    return f"wds:{root / 'owls.tar'}"


@pytest.fixture(params=[make_folder, make_cub, make_wds])
def spec(request, tmp_path):
    return request.param(tmp_path)


@pytest.mark.parametrize(("threshold", "above"), [(None, 127), (0, 0), (127, 127), (203, 203)])
def test_every_reader_has_one_threshold(spec, threshold, above):
    samples = load(spec, "all", mask_threshold=threshold).subset([1, 0])
    np.testing.assert_array_equal(samples.mask(0), above < VOTES)


def test_a_data_set_warns_of_its_first_grey_mask(spec, caplog):
    samples = load(spec, "all")
    for row in (0, 1, 0):
        samples.subset([row]).mask(0)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert (
        "6 levels of brightness; the object is where it is above 127 of 255 (--mask-threshold)" in record.getMessage()
    )


def test_a_threshold_that_would_do_nothing_is_refused(tmp_path):
    write({tmp_path / "owl.png": png(VOTES)})
    for spec in ("digits", f"folder:{tmp_path}"):
        with pytest.raises(DataError, match="has no masks that are read by brightness"):
            load(spec, "all", mask_threshold=9)


@pytest.mark.parametrize("of_masks", ["NFC", "NFD"])
@pytest.mark.parametrize("of_images", ["NFC", "NFD"])
def test_masks_are_found_whichever_way_accents_are_encoded(tmp_path, of_images, of_masks):
    image, mask = (unicodedata.normalize(form, "Möwen/Flügel") for form in (of_images, of_masks))
    write({tmp_path / f"images/{image}.jpg": png(VOTES), tmp_path / f"masks/{mask}.png": png(VOTES)})
    samples = load(f"folder:{tmp_path}", "all")
    np.testing.assert_array_equal(samples.mask(0), VOTES > 127)
    assert samples.names == ("Möwen",)

    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in ((f"{image}.png", png(VOTES)), (f"{mask}.mask.png", png(VOTES)), (f"{mask}.cls", mask)):
            member, content = tarfile.TarInfo(name), content if isinstance(content, bytes) else content.encode()
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    shards = load(f"wds:{tmp_path / 'a.tar'}", "all")
    np.testing.assert_array_equal(shards.mask(0), VOTES > 127)
    assert shards.names == ("Möwen/Flügel",)


@pytest.mark.parametrize("kind", ["folder", "cub", "pets", "camvid", "wds"])
def test_an_unknown_user_is_named(kind):
    with pytest.raises(DataError, match="the home folder of ~nobody-of-that-name is unknown|no shard matches"):
        load(f"{kind}:~nobody-of-that-name/birds")
