import numpy as np
import pytest
from PIL import Image

from embedcam.errors import DataError, EmbedcamError
from embedcam.show.frames import caption, hottest_box, tint
from embedcam.show.overlay import overlay


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("size", [(48, 64), (12, 12), (96, 96)])
def test_a_tinted_frame_is_the_overlay_to_within_a_level(picture, size, alpha):
    heatmap = np.random.default_rng(1).random(size, dtype=np.float32)
    found = np.asarray(tint(picture, heatmap, alpha, "viridis")).astype(int)
    assert np.abs(found - overlay(picture, heatmap, alpha, "viridis")).max() <= 1


def test_a_tinted_frame_wants_a_heat_map(picture):
    with pytest.raises(DataError, match=r"pass \.heatmaps"):
        tint(picture, np.full((4, 4), 2.0))


def test_the_box_holds_all_that_is_hotter_than_the_share_of_the_maximum(picture):
    raw = np.random.default_rng(2).random((48, 64), dtype=np.float32) + 5
    rows, columns = np.where(raw / raw.max() > 0.995)  # as Faster-Grad-CAM works its limits out
    box = hottest_box(picture, raw, 0.995)
    assert (box.left, box.top, box.right - 1, box.bottom - 1) == (
        columns.min(),
        rows.min(),
        columns.max(),
        rows.max(),
    )


def test_the_box_is_in_the_pixels_of_the_frame(picture):
    raw = np.zeros((6, 8), dtype=np.float32)
    raw[2, 3] = 1  # a cell is 8 x 8 pixels: its middle is at row 20, column 28
    box = hottest_box(picture, raw, 0.8)
    assert (box.left + box.right, box.top + box.bottom) == (56, 40)
    assert box.right - box.left < 8


def test_a_zero_map_has_no_box(picture):
    assert hottest_box(picture, np.zeros((6, 8), dtype=np.float32)) is None


def test_a_caption_stands_in_the_top_left_corner(picture):
    image = Image.fromarray(picture)
    caption(image, "30 fps, a cluster of a name that is far too long for a frame of 64 pixels")
    changed = np.argwhere((np.asarray(image) != picture).any(axis=2))
    assert changed.min() == 0
    assert changed[:, 0].max() < 24
    assert (np.asarray(image)[:3, :3] < 30).all()


def test_an_empty_caption_changes_nothing(picture):
    image = Image.fromarray(picture)
    caption(image, "")
    np.testing.assert_array_equal(np.asarray(image), picture)


def test_alpha_outside_0_to_1_is_refused(picture):
    with pytest.raises(EmbedcamError, match=r"alpha must lie in \[0, 1\], got 1.5"):
        tint(picture, np.zeros((4, 4)), alpha=1.5)
