import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from embedcam.explain.maps import combine, fuse, normalize, place, spread
from embedcam.nets.geometry import Geometry


def test_combine_is_the_rectified_weighted_sum():
    maps = np.array([[[[1.0, 2.0]], [[3.0, 1.0]]]], dtype=np.float32)  # (1, 2, 1, 2)
    weights = np.array([[2.0, -1.0]], dtype=np.float32)

    np.testing.assert_array_equal(combine(maps, weights), [[[0, 3]]])


def test_torch_and_numpy_agree():
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((2, 5, 3, 4)).astype(np.float32)
    weights = rng.standard_normal((2, 5)).astype(np.float32)
    geometry = Geometry((8.0, 6.0), (0.5, 3.0))
    expected = place(combine(maps, weights), geometry, (24, 24))

    placed = place(combine(torch.from_numpy(maps), torch.from_numpy(weights)), geometry, (24, 24))
    np.testing.assert_allclose(placed.numpy(), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(normalize(placed).numpy(), normalize(expected), atol=1e-6)


def test_stretch_equals_the_bilinear_resize():
    maps = torch.rand(2, 7, 5)
    placed = place(maps, Geometry.stretch((7, 5), (224, 160)), (224, 160))
    resized = torch.nn.functional.interpolate(maps[:, None], (224, 160), mode="bilinear", align_corners=False)[:, 0]

    torch.testing.assert_close(placed, resized, rtol=1e-5, atol=1e-5)


def test_a_cell_is_strongest_at_its_own_centre():
    maps = np.zeros((1, 7, 7), dtype=np.float32)
    maps[0, 2, 4] = 1
    placed = place(maps, Geometry((32.0, 32.0), (0.5, 0.5)), (224, 224))[0]

    assert np.unravel_index(placed.argmax(), placed.shape) == (64, 128)  # pixel 64 spans [64, 65), centre 64.5
    assert placed[64, 128] == 1
    assert placed[80, 128] == pytest.approx(0.5)


def test_beyond_the_outermost_centres_the_nearest_cell_holds():
    maps = np.array([[[1.0, 3.0]]], dtype=np.float32)
    placed = place(maps, Geometry((1.0, 4.0), (0.5, 4.0)), (1, 12))[0, 0]

    np.testing.assert_allclose(placed, [1, 1, 1, 1, 1.25, 1.75, 2.25, 2.75, 3, 3, 3, 3])


def test_one_cell_fills_the_image():
    np.testing.assert_array_equal(
        place(np.full((1, 1, 1), 5.0, np.float32), Geometry((9, 9), (4, 4)), (3, 2)), np.full((1, 3, 2), 5)
    )


def test_normalize_by_hand():
    maps = np.array([[[1, 2], [3, 5]], [[4, 4], [4, 4]], [[0, 0], [0, 0]]], dtype=np.float32)
    np.testing.assert_array_equal(normalize(maps), [[[0, 0.25], [0.5, 1]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]])


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(1, 5)),
        elements=st.floats(0, 2.0**100, width=32),
    )
)
def test_normalized_maps_lie_in_0_to_1_whatever_comes_in(maps):
    found = normalize(maps)

    assert found.dtype == np.float32
    assert found.shape == maps.shape
    assert np.isfinite(found).all()
    assert ((found >= 0) & (found <= 1)).all()


@given(
    st.integers(1, 9),
    st.integers(1, 40),
    st.floats(0.5, 40),
    st.floats(-20, 60),
)
def test_placing_never_leaves_the_range_of_the_map(cells, pixels, stride, first):
    maps = np.random.default_rng(cells).random((1, cells, cells), dtype=np.float32)
    placed = place(maps, Geometry((stride, stride), (first, first)), (pixels, pixels))

    assert placed.min() >= maps.min() - 1e-6
    assert placed.max() <= maps.max() + 1e-6


def bilinear(values, position):
    """The value between cells at a fractional (row, column), written out; beyond the ends that of the last cell."""
    (height, width), found = values.shape, 0.0
    row, column = (min(max(at, 0.0), end - 1.0) for at, end in zip(position, (height, width), strict=True))
    for i in range(height):
        for j in range(width):
            found += values[i, j] * max(0.0, 1 - abs(i - row)) * max(0.0, 1 - abs(j - column))
    return found


SIDES = st.tuples(st.integers(1, 5), st.integers(1, 5))
PLACES = st.builds(
    Geometry,
    st.tuples(st.floats(0.5, 20), st.floats(0.5, 20)),
    st.tuples(st.floats(-20, 20), st.floats(-20, 20)),
)


@given(SIDES, SIDES, PLACES, PLACES, st.integers(0, 2**32 - 1))
def test_every_value_is_the_bilinear_one_at_its_place(cells, size, geometry, onto, seed):
    maps = np.random.default_rng(seed).standard_normal((2, *cells))
    found = place(maps, geometry, size, onto=onto)

    for b, i, j in np.ndindex(2, *size):
        position = [
            (onto.first_cell_center[axis] + at * onto.cell_stride[axis] - geometry.first_cell_center[axis])
            / geometry.cell_stride[axis]
            for axis, at in enumerate((i, j))
        ]
        # The matrices are float32, and a place is worked out with the error of one.
        assert found[b, i, j] == pytest.approx(bilinear(maps[b], position), abs=1e-5)


@given(st.integers(0, 3), st.integers(1, 6), SIDES, st.integers(0, 2**32 - 1))
def test_combining_is_the_sum_over_channels_written_out(batch, count, side, seed):
    rng = np.random.default_rng(seed)
    maps, weights = rng.standard_normal((batch, count, *side)), rng.standard_normal((batch, count))
    combined = combine(maps, weights)

    assert combined.shape == (batch, *side)
    for b, i, j in np.ndindex(batch, *side):
        total = sum(weights[b, k] * maps[b, k, i, j] for k in range(count))
        assert combined[b, i, j] == pytest.approx(max(total, 0.0), abs=1e-9)


def test_maps_are_placed_onto_the_cells_of_another_map():
    # Cells at 4 and 12 onto cells at 2, 6, 10, 14: the outermost are beyond the centres.
    coarse = np.array([[[0.0, 1.0], [0.0, 1.0]]], dtype=np.float32)
    onto = place(coarse, Geometry((8, 8), (4, 4)), (4, 4), onto=Geometry((4, 4), (2, 2)))
    np.testing.assert_allclose(onto, np.tile([0, 0.25, 0.75, 1], (1, 4, 1)))


def test_fused_maps_are_products_with_the_strongest_cells_clipped():
    fine = torch.arange(400, dtype=torch.float32).reshape(1, 20, 20)
    # 1.5 % of 400 cells are 6: the sixth largest product is 2 * 394. Of 25 cells, 0.375 is rounded up to 1.
    torch.testing.assert_close(fuse(torch.full_like(fine, 2), fine), 2 * fine.clip(max=394))
    few = torch.arange(25, dtype=torch.float32).reshape(1, 5, 5)
    torch.testing.assert_close(fuse(torch.ones_like(few), few), few)


def test_a_fused_map_with_few_positive_cells_is_not_clipped():
    fine = torch.zeros(1, 20, 20)
    fine[0, 3, 4] = 2
    torch.testing.assert_close(fuse(torch.ones_like(fine), fine), fine)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_own_image(bad):
    maps, fine = (torch.rand(3, 4, side, side, generator=torch.Generator().manual_seed(side)) + 1 for side in (5, 10))
    weights, onto = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)), Geometry((2, 2), (1, 1))

    def placed(maps):
        coarse = place(combine(maps, weights), Geometry((4, 4), (2, 2)), (10, 10), onto)
        return place(fuse(coarse, combine(fine, weights)), onto, (20, 20)).numpy()

    spoilt_maps = maps.clone()
    spoilt_maps[1, 2, 0, 0] = bad
    good, spoilt = placed(maps), placed(spoilt_maps)
    np.testing.assert_array_equal(spoilt[[0, 2]], good[[0, 2]])
    assert not np.isfinite(spoilt[1]).all()  # or it would pass for a map


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(
    "values, expected",
    [
        ([0, 1e-41], [0, 0]),  # flat: the quotient of denormal numbers has no digits left
        ([0, 2e-38], [0, 1]),
        ([0, 1.7e38, 3.4e38], [0, 0.5, 1]),
        ([1, np.nextafter(np.float32(1), np.float32(2))], [0, 1]),
        ([3.4e38, 3.4e38], [0, 0]),
        ([-2, -1], [0, 1]),
    ],
)
def test_normalize_at_the_ends_of_what_float32_holds(values, expected):
    np.testing.assert_allclose(normalize(np.array([[values]], np.float32)), [[expected]], atol=1e-6)


def test_maps_too_small_to_be_multiplied_fuse_to_nothing():
    ones = torch.ones(1, 3, 3)
    assert fuse(1e-18 * ones, 1e-18 * ones).min() > 0
    assert not fuse(1e-25 * ones, 1e-25 * ones).any()


@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy])
def test_an_empty_batch_stays_empty(library):
    maps, weights = library(np.zeros((0, 4, 5, 6), np.float32)), library(np.zeros((0, 4), np.float32))
    combined = combine(maps, weights)
    assert tuple(place(combined, Geometry((2, 2), (1, 1)), (10, 12)).shape) == (0, 10, 12)
    assert normalize(np.zeros((0, 3, 4), np.float32)).shape == (0, 3, 4)
    assert fuse(torch.zeros(0, 3, 4), torch.zeros(0, 3, 4)).shape == (0, 3, 4)


@pytest.mark.parametrize("size", [(1, 8000), (8000, 1)])
def test_a_strip_is_placed_along_its_length(size):
    cells = tuple(-(-side // 32) for side in size)
    ramp = np.arange(250, dtype=np.float32).reshape(1, *cells)
    placed = place(ramp, Geometry((32, 32), (0.5, 0.5)), size)
    np.testing.assert_allclose(placed.ravel(), np.minimum(np.arange(8000) / 32, 249), rtol=1e-5)


def test_spread_follows_the_covariance_of_features_with_heat():
    heat = torch.tensor([[[4.0, 3.0, 0.0, 1.0]]])
    features = torch.tensor([[[[1.0, 2.0, -1.0, -2.0]], [[0.0, 1.0, 0.0, 3.0]]]])
    hot, maps = heat[0, 0].double(), features[0, :, 0].double()
    maps, weights = maps - maps.mean(dim=1, keepdim=True), hot
    for _ in range(3):
        covariance = torch.stack([((weights - weights.mean()) * channel).sum() for channel in maps])
        fine = (covariance @ maps).clamp(min=0)
        fine = fine / fine.max()
        weights = hot * fine

    torch.testing.assert_close(spread(heat, features, rounds=3)[0, 0].double(), fine, rtol=1e-5, atol=1e-6)


def test_spread_of_nearly_equal_heat_keeps_its_digits():
    generator = torch.Generator().manual_seed(0)
    heat = 1 + 1e-3 * torch.rand(2, 16, 16, generator=generator)
    features = 10 + torch.rand(2, 64, 16, 16, generator=generator)
    expected = spread(heat.double(), features.double(), rounds=4).float()
    torch.testing.assert_close(spread(heat, features, rounds=4), expected, rtol=0, atol=1e-4)


def test_spread_of_equal_heat_or_equal_features_is_zero():
    varied = torch.rand(1, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    assert not spread(torch.full((1, 7, 7), 0.7), varied, rounds=4).any()
    assert not spread(varied[:, 0], torch.full((1, 3, 7, 7), 0.7), rounds=4).any()
