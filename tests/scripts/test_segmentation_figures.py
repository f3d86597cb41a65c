import numpy as np
import pytest
from PIL import Image

from embedcam.errors import DataError, EmbedcamError
from embedcam.show import overlay

RED, GREEN = (200, 0, 0), (0, 200, 0)
GREY = np.full((2, 4, 3), 100, np.uint8)


def test_colours_are_mixed_into_the_picture(script):
    mixed = script.label_overlay(GREY, np.array([[0, 0, 1, 1]] * 2), (RED, GREEN), alpha=0.75)
    assert mixed[0, 0].tolist() == [175, 25, 25] and mixed[1, 3].tolist() == [25, 175, 25]
    assert (script.label_overlay(GREY, np.zeros((2, 4), int), (RED,), alpha=0) == GREY).all()


def test_unlabelled_pixels_show_the_picture(script):
    mixed = script.label_overlay(GREY, np.array([[0, 2, 1, 2]] * 2), (RED, GREEN), alpha=1, unlabelled=2)
    assert mixed[0].tolist() == [list(RED), [100] * 3, list(GREEN), [100] * 3]
    assert (GREY == 100).all()


def test_smaller_label_image_is_enlarged_by_nearest_neighbour(script):
    labels = np.array([[0, 1], [1, 0]], np.uint8)
    large = script.label_overlay(np.zeros((6, 4, 3), np.uint8), labels, (RED, GREEN), alpha=1)
    expected = np.repeat(np.repeat(np.asarray([RED, GREEN])[labels], 3, axis=0), 2, axis=1)
    assert (large == expected).all()


def test_larger_label_image_gives_each_pixel_the_label_at_its_centre(script):
    labels = np.arange(9).reshape(1, 9) % 2
    small = script.label_overlay(np.zeros((1, 3, 3), np.uint8), labels, (RED, GREEN), alpha=1)
    assert small[0].tolist() == [list((RED, GREEN)[labels[0, column]]) for column in (1, 4, 7)]


@pytest.mark.parametrize(
    "labels, message",
    [
        (np.zeros((2, 4)), r"must hold integers \(H, W\), got float64 \(2, 4\)"),
        (np.zeros((1, 2, 4), int), r"got int64 \(1, 2, 4\)"),
        (np.full((2, 4), 2), "has index 2, but there are 2 colours"),
        (np.full((2, 4), -1), "has index -1"),
    ],
)
def test_wrong_label_image_is_an_error(script, labels, message):
    with pytest.raises(DataError, match=message):
        script.label_overlay(GREY, labels, (RED, GREEN))


@pytest.mark.parametrize("size", [(1, 1), (1, 8000), (8000, 1), (2, 3)])
def test_pictures_of_any_size_are_drawn_on(script, size):
    picture = np.zeros((*size, 3), np.uint8)
    assert script.label_overlay(picture, np.zeros((3, 2), int), [(1, 2, 3)]).shape == (*size, 3)
    assert script.with_color_bar(picture, ["a"], [(1, 2, 3)]).height == size[0]


def test_alpha_outside_its_range_is_an_error(script):
    with pytest.raises(EmbedcamError, match="alpha must lie in"):
        script.label_overlay(GREY, np.zeros((2, 4), int), (RED,), alpha=2)


def test_color_bar_lists_the_classes_from_top_to_bottom(script):
    picture = np.full((60, 40, 3), 7, np.uint8)
    sheet = np.asarray(script.with_color_bar(picture, ("Road", "Car"), (RED, GREEN)))
    assert (sheet[:, :40] == 7).all()
    reds, greens = ((sheet == color).all(axis=2) for color in (RED, GREEN))
    assert reds[:30].sum() == greens[30:].sum() >= 30 * 12
    assert not reds[30:].any() and not greens[:30].any()
    names = sheet[:, np.flatnonzero(reds.any(axis=0)).max() + 1 :]
    assert (names < 128).any(axis=(1, 2))[:30].any() and (names < 128).any(axis=(1, 2))[30:].any()


def test_color_bar_keeps_its_margin(script):
    sheet = np.asarray(script.with_color_bar(Image.new("RGB", (9, 60)), ("Road",), (RED,), margin=10))
    assert np.flatnonzero((sheet == RED).all(axis=2).any(axis=1)).tolist() == list(range(10, 50))


def test_color_bar_survives_many_classes_and_endless_names(script):
    sheet = script.with_color_bar(np.zeros((20, 20, 3), np.uint8), ["x" * 10_000] * 50, [RED] * 50)
    assert sheet.height == 20 and sheet.width < 300


def test_color_bar_needs_one_colour_a_class(script):
    with pytest.raises(EmbedcamError, match="got 2 classes and 1 colours"):
        script.with_color_bar(GREY, ("a", "b"), (RED,))
    with pytest.raises(EmbedcamError, match="got 0 classes"):
        script.with_color_bar(GREY, (), ())


def test_figure_has_layers_as_rows_and_classes_as_columns(script):
    image = np.full((40, 40, 3), 90, np.uint8)
    rising, falling = np.linspace(0, 1, 1600).reshape(40, 40), np.linspace(1, 0, 1600).reshape(40, 40)
    maps = {
        "early": {"Road": rising, "Car": falling},
        "late": {"Road": rising**2, "Car": np.zeros((40, 40))},
    }
    labels = np.zeros((40, 40), int)
    figure = np.asarray(
        script.layers_figure(image, {"prediction": labels}, maps, ("Road", "Car"), (RED, GREEN), picture_size=40)
    )
    places = [_find(figure, overlay(image, heatmap)) for row in maps.values() for heatmap in row.values()]
    (early_road, early_car, late_road, late_car) = places
    assert early_road[0] == early_car[0] < late_road[0] == late_car[0]
    assert early_road[1] == late_road[1] < early_car[1] == late_car[1]
    picture, prediction = _find(figure, image), _find(figure, script.label_overlay(image, labels, (RED,)))
    assert picture[0] == early_road[0] and picture[1] == prediction[1] < early_road[1]


def test_layers_with_other_classes_are_an_error(script):
    heat = np.zeros((2, 4))
    with pytest.raises(EmbedcamError, match="layer 'late' has heat maps of Car, expected Road"):
        script.layers_figure(GREY, {}, {"early": {"Road": heat}, "late": {"Car": heat}}, ("Road",), (RED,))


def _find(sheet, picture):
    """Where a picture lies on a sheet: (top, left) of the only place that holds exactly its pixels."""
    windows = np.lib.stride_tricks.sliding_window_view(sheet, picture.shape)[:, :, 0]
    ((top, left),) = np.argwhere((windows == picture).all(axis=(2, 3, 4)))
    return int(top), int(left)
