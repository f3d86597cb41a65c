import numpy as np
import pytest

from embedcam.errors import DataError
from embedcam.show.checks import check_heatmap, check_picture


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_what_is_no_rgb_picture_is_refused(picture):
    with pytest.raises(DataError, match=r"uint8 \(H, W, 3\)"):
        check_picture(picture)


@pytest.mark.parametrize(
    ("heatmap", "message"),
    [
        (np.zeros((1, 4, 4)), "one map of the batch"),
        (np.zeros((0, 4)), r"\(H, W\)"),
        (np.array([[0.0, np.nan]]), "finite"),
        (np.array([[0.0, np.inf]]), "finite"),
        (np.array([[0.0, 3.0]]), r"\[0, 1\], got 0 to 3"),
        (np.array([[-0.5, 1.0]]), r"\[0, 1\], got -0.5 to 1"),
        (np.array([["a"]]), "real numbers"),
    ],
)
def test_what_is_no_heat_map_is_refused(heatmap, message):
    with pytest.raises(DataError, match=message):
        check_heatmap(heatmap)


def test_rounding_beyond_the_range_is_clipped():
    heat = check_heatmap(np.array([[-1e-6, 0.5, 1.0 + 1e-6]]))
    np.testing.assert_array_equal(heat, [[0.0, 0.5, 1.0]])


def test_a_bool_map_counts_as_zeros_and_ones():
    np.testing.assert_array_equal(check_heatmap(np.array([[True, False]])), [[1.0, 0.0]])
