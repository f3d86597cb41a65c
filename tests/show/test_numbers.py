"""Pictures and heat maps of odd sizes and numbers are drawn, or refused in one clear line."""

import numpy as np
import pytest
import torch
from PIL import Image

from embedcam.errors import DataError
from embedcam.explain.explanation import Explanation
from embedcam.show.boxes import draw_boxes, find_boxes, mask_box
from embedcam.show.grid import grid
from embedcam.show.overlay import colorize, overlay

SIZES = [(1, 1), (1, 8000), (8000, 1), (2, 3)]


@pytest.mark.parametrize("size", SIZES)
def test_pictures_of_any_size_are_drawn_on(size):
    picture, heatmap = np.zeros((*size, 3), np.uint8), np.ones(size, np.float32)
    assert overlay(picture, heatmap).shape == overlay(picture, np.ones((3, 3))).shape == (*size, 3)
    assert overlay(np.zeros((4, 5, 3), np.uint8), heatmap).shape == (4, 5, 3)
    (box,) = find_boxes(heatmap)
    assert (box.left, box.top, box.right, box.bottom) == (0, 0, size[1], size[0])
    assert mask_box(heatmap > 0).area == size[0] * size[1]
    assert draw_boxes(picture, [box], ["a label that is longer than the picture"]).shape == (*size, 3)
    assert grid([[picture, heatmap > 0]], [["picture", "mask"]], ["left", "right"], ["row"]).width < 500
    (drawn,) = Explanation.of(np.random.default_rng(0).random((1, *size), np.float32)).overlay(torch.zeros(1, 3, *size))
    assert drawn.shape == (*size, 3)


def test_a_contact_sheet_shows_a_strip_as_a_line():
    strip = np.full((1, 8000, 3), (255, 0, 0), np.uint8)
    sheet = np.asarray(grid([[strip]], picture_size=100)).astype(int)
    red = (sheet[..., 0] > 200) & (sheet[..., 1] < 50)
    assert red.any(axis=0).sum() == 100 and red.any(axis=1).sum() == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_heat_that_is_not_finite_is_refused(bad):
    heatmap = np.zeros((3, 3), np.float32)
    heatmap[1, 1] = bad
    for draw in (colorize, find_boxes, lambda heat: overlay(np.zeros((3, 3, 3), np.uint8), heat)):
        with pytest.raises(DataError, match="must be finite, got NaN or infinity"):
            draw(heatmap)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_denormal_and_negative_zero_heat_is_cold():
    cold = colorize(np.zeros((2, 2), np.float32))
    for value in (1e-41, -0.0):
        heatmap = np.full((2, 2), value, np.float32)
        np.testing.assert_array_equal(colorize(heatmap), cold)
        assert find_boxes(heatmap) == []


def test_a_one_pixel_heat_map_covers_the_picture():
    picture = np.asarray(Image.new("RGB", (6, 4), "gray"))
    covered = overlay(picture, np.ones((1, 1)), alpha=1)
    assert (covered == covered[0, 0]).all() and (covered[0, 0] == colorize(np.ones((1, 1)))[0, 0]).all()
