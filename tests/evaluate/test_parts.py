"""Heat by part on maps whose heat at each part is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from embedcam.data.keypoints import Keypoints
from embedcam.data.preprocess import Preprocess
from embedcam.data.samples import FileSamples
from embedcam.errors import DataError
from embedcam.evaluate.parts import heat_by_part
from embedcam.explain.explanation import Explanation

SIDE = 8
NAN = [np.nan, np.nan]


@pytest.fixture
def samples(tmp_path):
    """Two pictures of 16 x 8 pixels; parts at the left, right and, in the first only, further right."""
    files = tuple(tmp_path / f"{i}.png" for i in range(2))
    for file in files:
        Image.new("RGB", (16, 8)).save(file)
    places = np.array([[[1.5, 3.5], [5.5, 3.5], [13.5, 3.5]], [[3.5, 3.5], NAN, [11.5, 3.5]]])
    keypoints = Keypoints(("eye", "beak", "tail"), ("head", "head", "tail"), places)
    return FileSamples(files, tuple(file.name for file in files), keypoints=keypoints)


def heat_of(samples, *columns, images=(0, 1)):
    """Measure maps with the given heat in each of the eight columns."""
    maps = np.stack([np.tile(np.float32(row), (SIDE, 1)) for row in columns])
    method = lambda batch: Explanation(maps, maps, [[]] * len(maps))  # noqa: E731
    batches = [(np.array(images), torch.zeros(len(images), 3, SIDE, SIDE))]
    return heat_by_part({"known": method}, samples, batches, Preprocess((SIDE, SIDE)))


def test_pixels_belong_to_the_nearest_visible_part(samples):
    # Columns of the map are two pixels wide. First picture: 0 and 1 of the eye, 2 to 4 of the beak, 5 to 7 of the tail.
    # Second: 0 to 3 of the eye, the rest of the tail.
    result = heat_of(samples, [2, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1, 0])
    assert result["images"] == 2
    (row,) = result["rows"]
    parts = row["parts"]
    assert parts["eye"] == {
        "heat": pytest.approx((3 / 4 + 1 / 4) / 2),
        "area": pytest.approx((2 / 8 + 4 / 8) / 2),
        "density": pytest.approx(0.5 / 0.375),
        "images": 2,
    }
    assert (parts["beak"]["heat"], parts["beak"]["area"], parts["beak"]["images"]) == (1 / 4, 3 / 8, 1)
    assert parts["tail"]["heat"] == pytest.approx((0 + 3 / 4) / 2)
    assert row["groups"]["head"]["heat"] == pytest.approx((1 + 1 / 4) / 2)
    assert row["groups"]["head"]["area"] == pytest.approx((5 / 8 + 4 / 8) / 2)
    # The head is denser in the first picture alone.
    assert row["prefers"]["head over tail"]["share"] == 0.5
    assert row["prefers"]["head over tail"]["images"] == 2


def test_only_the_object_counts(samples):
    boxed = replace(samples, boxes=np.array([[0, 0, 8, 8], [0, 0, 8, 8]], float))
    (row,) = heat_of(boxed, [1, 1, 0, 2, 9, 9, 9, 9], images=[0])["rows"]
    assert row["parts"]["eye"]["heat"] == pytest.approx(0.5)
    assert row["parts"]["eye"]["area"] == row["parts"]["beak"]["area"] == 0.5
    assert row["parts"]["tail"] == {"heat": None, "area": None, "density": None, "images": 0}
    assert row["prefers"] == {}


def test_maps_without_heat_count_as_none(samples):
    (row,) = heat_of(samples, [0] * 8, images=[0])["rows"]
    assert row["parts"]["tail"]["heat"] == 0
    assert row["parts"]["tail"]["area"] == 3 / 8


def test_images_without_keypoints_are_refused(samples):
    with pytest.raises(DataError, match="no keypoints"):
        heat_of(replace(samples, keypoints=None), [1] * 8, images=[0])
    hidden = replace(samples.keypoints, places=np.full((2, 3, 2), np.nan))
    with pytest.raises(DataError, match="no image has a visible part"):
        heat_of(replace(samples, keypoints=hidden), [1] * 8, images=[0])
