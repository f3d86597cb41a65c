import numpy as np
import pytest
from PIL import Image

from embedcam.show.boxes import Box
from embedcam.show.drawing import DrawOptions, SheetEntry, bounded, contact_sheet, draw_overlay, scale_box
from embedcam.show.overlay import overlay

LINE = {
    "overlay": "overlays/cats/tom.jpg.png",
    "cluster": 3,
    "cluster_labels": {"cat": 7, "dog": 1},
    "typicality_in_words": "unlike the training images",
    "notes": ["unlike the training images: far out", "the map is flat: nothing stands out"],
}


@pytest.mark.parametrize(("size", "expected"), [((200, 100), (50, 25)), ((30, 50), (30, 50)), ((10, 20), (10, 20))])
def test_only_pictures_that_are_too_large_shrink(size, expected):
    picture = bounded(Image.new("RGB", size, (9, 8, 7)), 50)
    assert picture.shape == (expected[1], expected[0], 3)
    assert (picture == [9, 8, 7]).all()


def test_options_are_those_of_the_overlay():
    picture, heatmap = np.full((8, 8, 3), 90, np.uint8), np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    drawn, boxes = draw_overlay(picture, heatmap, DrawOptions(alpha=0.2, colormap="viridis"))
    np.testing.assert_array_equal(drawn, overlay(picture, heatmap, alpha=0.2, colormap="viridis"))
    assert boxes == []


def test_boxes_are_found_at_the_pictures_size():
    heatmap = np.zeros((4, 4), np.float32)
    heatmap[:2, :2] = 1
    _, boxes = draw_overlay(np.zeros((40, 40, 3), np.uint8), heatmap, DrawOptions(boxes=True, threshold=0.5))
    assert boxes == [{"left": 0, "top": 0, "right": 20, "bottom": 20, "score": pytest.approx(0.94, abs=0.05)}]


def test_an_entry_shows_name_notes_typicality_and_cluster():
    picture = np.zeros((200, 400, 3), np.uint8)
    entry = SheetEntry.of(picture, np.zeros((8, 8), np.float32), LINE, DrawOptions())
    assert entry.picture.shape == entry.overlay.shape == (80, 160, 3)
    assert entry.picture_caption == "tom.jpg\nthe map is flat"
    assert entry.overlay_caption == "unlike the training images\ncluster 3 of cat"
    plain = SheetEntry.of(picture, np.zeros((8, 8), np.float32), {**LINE, "cluster_labels": {}}, DrawOptions())
    assert plain.overlay_caption == "unlike the training images\ncluster 3"


def test_the_sheet_has_four_entries_per_row():
    entry = SheetEntry.of(np.zeros((40, 40, 3), np.uint8), np.zeros((8, 8), np.float32), LINE, DrawOptions())
    one, four, five = (contact_sheet([entry] * count).size for count in (1, 4, 5))
    assert one[0] * 3 < four[0] == five[0]
    assert one[1] == four[1] < five[1]


def test_a_scaled_box_is_rounded_outwards():
    # From 4 x 4 to 6 x 10 pixels: columns 1 to 3 span 2.5 to 7.5, rows 1 to 2 span 1.5 to 3.
    box = scale_box(Box(1, 1, 3, 2, score=0.5, area=2), (4, 4), (6, 10))
    assert box == Box(2, 1, 8, 3, score=0.5, area=2)
