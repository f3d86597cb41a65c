import numpy as np
import pytest
import torch
from PIL import Image

from embedcam.data.preprocess import Preprocess
from embedcam.errors import DataError
from embedcam.explain.explanation import FLAT, NOT_FINITE, Explanation


def ramp():
    return np.linspace(0, 2, 16, dtype=np.float32).reshape(1, 4, 4)


def test_maps_are_normalised_and_the_raw_ones_kept():
    explanation = Explanation.of(ramp())

    np.testing.assert_allclose(explanation.heatmaps, ramp() / 2)
    np.testing.assert_array_equal(explanation.raw, ramp())
    assert explanation.notes == [[]]


def test_flat_and_infinite_maps_are_zero_and_noted():
    raw = np.concatenate([ramp(), np.zeros((1, 4, 4), np.float32), ramp()])
    raw[2, 1, 1] = np.nan
    explanation = Explanation.of(raw)

    assert explanation.notes == [[], [FLAT], [NOT_FINITE]]
    assert not explanation.heatmaps[1:].any()
    assert np.isfinite(explanation.raw).all()


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_maps_at_the_ends_of_what_float32_holds_are_scaled_or_noted():
    raw = np.float32([[[0, 1e-41]], [[0, 2e-38]], [[0, 3.4e38]], [[np.inf, 0]], [[-np.inf, 0]]])
    explanation = Explanation.of(raw)

    assert explanation.notes == [[FLAT], [], [], [NOT_FINITE], [NOT_FINITE]]
    np.testing.assert_allclose(explanation.heatmaps, [[[0, 0]], [[0, 1]], [[0, 1]], [[0, 0]], [[0, 0]]], atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 8000), (8000, 1)])
def test_a_map_of_one_value_has_nothing_that_stands_out_and_a_strip_may(size):
    explanation = Explanation.of(np.random.default_rng(0).random((1, *size), np.float32))
    assert explanation.notes == ([[FLAT]] if size == (1, 1) else [[]])
    assert bool(explanation.boxes(0.5)[0]) == (size != (1, 1))


def test_an_empty_batch_is_an_empty_explanation():
    explanation = Explanation.of(np.zeros((0, 4, 4), np.float32))
    assert len(explanation) == 0
    assert explanation.boxes() == []


def test_overlays_of_the_batch_itself_undo_its_normalisation():
    preprocess = Preprocess((4, 4), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    batch = torch.from_numpy(preprocess(Image.fromarray(pixels)))[None]
    explanation = Explanation.of(ramp(), preprocess=preprocess)

    (found,) = explanation.overlay(batch, alpha=0)

    np.testing.assert_array_equal(found, pixels)


def test_overlays_of_pictures_have_the_pictures_size():
    explanation = Explanation.of(ramp())
    (found,) = explanation.overlay([Image.new("RGB", (30, 20))])
    assert found.shape == (20, 30, 3)
    assert found.dtype == np.uint8


@pytest.mark.parametrize("images", [np.zeros((2, 3, 4, 4), np.float32), [Image.new("L", (4, 4))], []])
def test_images_that_do_not_fit_are_refused(images):
    with pytest.raises(DataError):
        Explanation.of(ramp()).overlay(images)


def test_boxes_are_found_at_the_threshold():
    raw = np.zeros((1, 6, 8), np.float32)
    raw[0, 1:3, 2:6] = 1
    ((box,),) = Explanation.of(raw).boxes(0.5)
    assert (box.left, box.top, box.right, box.bottom) == (2, 1, 6, 3)


def test_it_tells_what_it_is_in_a_line():
    raw = np.zeros((2, 4, 6), np.float32)
    assert (
        repr(Explanation.of(raw, clusters=np.array([3, 1])))
        == "<Explanation of 2 images, 4 x 6 pixels, clusters [3, 1]>"
    )
    assert repr(Explanation.of(raw)) == "<Explanation of 2 images, 4 x 6 pixels>"
