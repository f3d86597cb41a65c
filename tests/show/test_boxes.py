import numpy as np
import pytest

from embedcam.errors import DataError, EmbedcamError
from embedcam.show import Box, draw_boxes, find_boxes
from embedcam.show.boxes import iou, mask_box

HEAT = np.array(
    [
        [0.9, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.6, 0.8, 0.0],
        [0.0, 0.0, 0.0, 0.4, 0.7],
        [0.0, 0.0, 0.0, 0.0, 0.5],
    ]
)


def test_one_box_a_component_largest_first():
    large, small = find_boxes(HEAT, 0.5)
    # (1, 3) and (2, 4) touch at a corner only and still belong together.
    assert (large.left, large.top, large.right, large.bottom, large.area) == (2, 1, 5, 4, 4)
    assert large.score == pytest.approx((0.6 + 0.8 + 0.7 + 0.5) / 4)
    assert small == Box(0, 0, 1, 1, score=0.9, area=1)


def test_largest_means_most_pixels_not_widest_box():
    heat = np.zeros((12, 12))
    heat[np.arange(6), np.arange(6)] = 1.0  # 6 pixels in a box of 36
    heat[8:11, 8:11] = 1.0  # 9 pixels in a box of 9
    assert [box.area for box in find_boxes(heat)] == [9, 6]


def test_threshold_and_min_area_choose_what_counts():
    assert [box.area for box in find_boxes(HEAT, threshold=0.75)] == [1, 1]
    assert [box.area for box in find_boxes(HEAT, 0.5, min_area=2)] == [4]


def test_all_zero_map_has_no_box():
    assert find_boxes(np.zeros((4, 4)), threshold=0.01) == []


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.1])
def test_threshold_outside_its_range_is_refused(threshold):
    with pytest.raises(EmbedcamError, match="threshold"):
        find_boxes(HEAT, threshold)


def test_mask_box_spans_all_parts():
    mask = np.zeros((6, 8), bool)
    mask[1, 2] = mask[4, 5] = True
    assert mask_box(mask) == Box(2, 1, 6, 5, score=1.0, area=2)


def test_empty_mask_has_no_box():
    for shape in ((3, 3), (0, 5), (5, 0)):
        assert mask_box(np.zeros(shape, bool)) is None


def test_mask_that_is_not_bool_is_refused():
    with pytest.raises(DataError, match="bool"):
        mask_box(np.zeros((3, 3), np.uint8))


def box(left, top, right, bottom):
    return Box(left, top, right, bottom, score=1.0, area=1)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (box(0, 0, 4, 4), box(0, 0, 4, 4), 1.0),
        (box(0, 0, 4, 4), box(2, 2, 6, 6), 4 / 28),
        (box(0, 0, 4, 4), box(1, 1, 3, 3), 4 / 16),
        (box(0, 0, 4, 4), box(4, 0, 8, 4), 0.0),  # neighbours: right is exclusive
        (box(0, 0, 1, 1), box(5, 5, 6, 6), 0.0),
    ],
)
def test_iou_by_hand(a, b, expected):
    assert iou(a, b) == pytest.approx(expected)
    assert iou(b, a) == pytest.approx(expected)


def test_boxes_are_drawn_on_a_copy_around_their_pixels():
    picture = np.full((60, 80, 3), 128, np.uint8)
    drawn = draw_boxes(picture, [box(20, 15, 50, 40)], color="red")
    assert (picture == 128).all()
    red = (drawn == (255, 0, 0)).all(axis=2)
    rows, columns = np.nonzero(red)
    # At this size the line is one pixel, just outside the box.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (14, 40, 19, 50)
    assert (drawn[17:38, 22:48] == 128).all()


def test_line_grows_with_the_picture():
    def line_pixels(size):
        picture = np.zeros((size, size, 3), np.uint8)
        quarter = size // 4
        drawn = draw_boxes(picture, [box(quarter, quarter, 3 * quarter, 3 * quarter)], color=(255, 0, 0))
        return int((drawn[size // 2] == (255, 0, 0)).all(axis=1).sum()) // 2

    assert line_pixels(100) == 1
    assert line_pixels(1100) == 10


def test_border_boxes_and_single_pixels_are_drawn():
    picture = np.full((20, 30, 3), 128, np.uint8)
    for case in (box(0, 0, 30, 20), box(0, 0, 1, 1), box(29, 19, 30, 20)):
        assert (draw_boxes(picture, [case]) == 255).all(axis=2).any()
    assert draw_boxes(np.zeros((1, 1, 3), np.uint8), [box(0, 0, 1, 1)]).shape == (1, 1, 3)


@pytest.mark.parametrize("where", [box(0, 0, 20, 20), box(100, 60, 120, 80), box(50, 30, 60, 40)])
def test_label_tag_is_whole_inside_the_picture(where):
    picture = np.full((80, 120, 3), 128, np.uint8)

    def tag_area(boxes, label):
        tag = (draw_boxes(picture, boxes, [label], "blue") == (0, 0, 255)).all(axis=2)
        return int(tag.sum())

    untagged = int((draw_boxes(picture, [where], color="blue") == (0, 0, 255)).all(axis=2).sum())
    middle = box(40, 30, 60, 50)
    middle_untagged = int((draw_boxes(picture, [middle], color="blue") == (0, 0, 255)).all(axis=2).sum())
    whole = tag_area([middle], "cat") - middle_untagged
    # Some of the tag may lie over the line, which has the same colour.
    assert tag_area([where], "cat") - untagged > 0.8 * whole


def test_label_of_any_length_is_drawn():
    picture = np.zeros((50, 60, 3), np.uint8)
    drawn = draw_boxes(picture, [box(10, 20, 30, 40)] * 3, ["x" * 5000, "", "蝶\n\udcff"])
    assert drawn.shape == picture.shape


def test_wrong_arguments_are_refused():
    picture = np.zeros((10, 10, 3), np.uint8)
    with pytest.raises(EmbedcamError, match="1 boxes need as many labels, got 2"):
        draw_boxes(picture, [box(0, 0, 5, 5)], ["a", "b"])
    with pytest.raises(EmbedcamError, match="unknown colour 'rde'"):
        draw_boxes(picture, [box(0, 0, 5, 5)], color="rde")
    with pytest.raises(EmbedcamError, match="exceeds the picture of 10 x 10"):
        draw_boxes(picture, [box(5, 5, 20, 8)])
