import numpy as np
import pytest

from embedcam.errors import DataError, EmbedcamError
from embedcam.show import colorize, overlay
from embedcam.show.overlay import overlay_signed


def test_grey_colour_map_gives_the_heat_as_grey_levels():
    colors = colorize(np.array([[0.0, 0.2, 1.0]]), "gray")
    np.testing.assert_array_equal(colors, [[[0, 0, 0], [51, 51, 51], [255, 255, 255]]])
    assert colors.dtype == np.uint8


def test_turbo_runs_from_dark_blue_to_dark_red():
    cold, hot = colorize(np.array([[0.0, 1.0]]))[0]
    # The ends of the published table: (0.18995, 0.07176, 0.23217) and (0.4796, 0.01583, 0.01055).
    np.testing.assert_array_equal(cold, [48, 18, 59])
    np.testing.assert_array_equal(hot, [122, 4, 3])


def test_unknown_colour_map_suggests_a_near_one():
    with pytest.raises(EmbedcamError, match="unknown colormap 'virids'; did you mean 'viridis'"):
        colorize(np.zeros((2, 2)), "virids")


def test_changing_the_colours_does_not_change_the_colour_map():
    colorize(np.zeros((1, 1)), "gray")[:] = 7
    np.testing.assert_array_equal(colorize(np.zeros((1, 1)), "gray"), [[[0, 0, 0]]])


def test_alpha_0_is_the_picture_and_alpha_1_is_the_colours():
    rng = np.random.default_rng(0)
    picture, heat = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8), rng.random((5, 7))
    np.testing.assert_array_equal(overlay(picture, heat, alpha=0), picture)
    np.testing.assert_array_equal(overlay(picture, heat, alpha=1), colorize(heat))


def test_alpha_mixes_picture_and_colours_by_hand():
    picture = np.full((1, 2, 3), 100, np.uint8)
    mixed = overlay(picture, np.array([[0.0, 1.0]]), alpha=0.25, colormap="gray")
    # 0.75 * 100 + 0.25 * 0 = 75 and 0.75 * 100 + 0.25 * 255 = 138.75.
    np.testing.assert_array_equal(mixed[0, :, 0], [75, 139])
    np.testing.assert_array_equal(picture, 100)


def test_small_heat_map_is_enlarged_bilinearly():
    # Two cells over four pixels: half-pixel centres put the inner pixels at a quarter and three quarters.
    mixed = overlay(np.zeros((1, 4, 3), np.uint8), np.array([[0.0, 1.0]]), alpha=1, colormap="gray")
    np.testing.assert_array_equal(mixed[0, :, 0], [0, 64, 191, 255])


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alpha_outside_0_to_1_is_refused(alpha):
    with pytest.raises(EmbedcamError, match="alpha"):
        overlay(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2)), alpha=alpha)


def test_a_normalised_network_input_is_refused():
    with pytest.raises(DataError, match=r"Preprocess\.restore"):
        overlay(np.zeros((3, 8, 8), np.float32), np.zeros((8, 8)))


def test_evidence_for_is_orange_against_is_blue_on_the_grey_picture():
    grey = np.full((2, 3, 3), 100, dtype=np.uint8)
    drawn = overlay_signed(grey, np.array([[1, 0, -1], [0.5, 0, -0.5]]), alpha=0.5)
    np.testing.assert_array_equal(drawn[0], [[178, 120, 50], [100, 100, 100], [60, 90, 178]])
    np.testing.assert_array_equal(drawn[1], [[139, 110, 75], [100, 100, 100], [80, 95, 139]])
    for signed in ([[2.0]], [[np.nan]]):
        with pytest.raises(DataError):
            overlay_signed(grey, np.array(signed))
