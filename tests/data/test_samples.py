import pickle

import numpy as np
import pytest
from PIL import Image

from embedcam.data.samples import FileSamples, Samples, find_masks


@pytest.fixture
def samples(tmp_path):
    for i in range(3):
        Image.new("RGB", (4, 2), (i, 0, 0)).save(tmp_path / f"{i}.png")
    Image.new("L", (4, 2), 255).save(tmp_path / "mask.png")
    return FileSamples(
        files=tuple(tmp_path / f"{i}.png" for i in range(3)),
        ids=("a", "b", "c"),
        labels=np.array([0, 1, 1]),
        names=("x", "y"),
        mask_files=(None, tmp_path / "mask.png", None),
    )


def test_subset_keeps_everything_of_its_pictures_in_the_given_order(samples: Samples):
    subset = samples.subset([1, 0, 1])
    assert subset.ids == ("b", "a", "b") and subset.labels.tolist() == [1, 0, 1]
    assert subset.names == ("x", "y") and len(subset) == 3
    assert [subset.image(i).getpixel((0, 0))[0] for i in range(3)] == [1, 0, 1]
    assert subset.mask(0).all() and subset.mask(1) is None and subset.ignore(0) is None


def test_subset_without_masks_has_none(samples):
    assert samples.has_masks
    assert not samples.subset(np.array([0, 2])).has_masks
    assert len(samples.subset([])) == 0


def test_samples_can_be_sent_to_another_process(samples):
    copy = pickle.loads(pickle.dumps(samples))
    assert copy.ids == samples.ids and copy.mask(1).all()


def test_masks_are_found_by_stem_and_missing_ones_are_none(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.b.png").touch()
    assert find_masks(tmp_path, ["cat/a.b.jpg", "cat/c.jpg", "dog/a.b.jpg"]) == (
        tmp_path / "cat" / "a.b.png",
        None,
        None,
    )
    assert find_masks(tmp_path, ["cat/c.jpg"]) == ()
    assert find_masks(tmp_path / "gone", ["cat/a.b.jpg"]) == ()
