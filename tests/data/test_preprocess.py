import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from embedcam.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess


def picture(width=50, height=30):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_it_does_what_torchvision_does(interpolation):
    found = Preprocess((24, 40), interpolation=interpolation)(picture())
    resized = v2.functional.resize(picture(), [24, 40], v2.InterpolationMode(interpolation))
    expected = v2.functional.normalize(
        v2.functional.to_dtype(v2.functional.to_image(resized), torch.float32, scale=True), IMAGENET_MEAN, IMAGENET_STD
    )

    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-6)


def test_a_prepared_image_passes_as_it_is():
    prepared = np.ones((3, 4, 4), np.float32)
    assert Preprocess((224, 224))(prepared) is prepared


def test_restore_undoes_it():
    preprocess = Preprocess((30, 50))
    np.testing.assert_array_equal(preprocess.restore(preprocess(picture())[None])[0], np.asarray(picture()))


def test_masks_are_resized_by_the_nearest_pixel():
    mask = np.array([[True, False], [False, False]])
    np.testing.assert_array_equal(Preprocess((4, 4)).mask(mask), np.kron(mask, np.ones((2, 2))).astype(bool))


@pytest.mark.parametrize("wrong", [{"input_size": (0, 4)}, {"interpolation": "lanczos"}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Preprocess(**wrong)


@pytest.mark.parametrize("size", [(300, 401), (401, 300), (64, 64)])
def test_maps_and_masks_of_a_crop_agree_about_the_place_in_the_picture(size):
    preprocess = Preprocess((96, 64), crop_pct=0.8)
    heatmap = np.ones((96, 64), np.float32)
    whole = preprocess.on_picture(heatmap, size)
    assert whole.sum() == heatmap.sum()
    resized = Image.fromarray(whole).resize(size[::-1], Image.Resampling.NEAREST)
    assert preprocess.mask(np.asarray(resized) > 0).all()
    height, width = size
    inside = np.asarray(resized) > 0
    np.testing.assert_allclose(np.argwhere(inside).mean(axis=0), [(height - 1) / 2, (width - 1) / 2], atol=3)


def test_maps_of_whole_pictures_stay_as_they_are():
    heatmap = np.ones((8, 8), np.float32)
    assert Preprocess((8, 8)).on_picture(heatmap, (100, 50)) is heatmap


def test_the_crop_is_a_share():
    with pytest.raises(ValueError, match=r"crop_pct must lie in \(0, 1\]"):
        Preprocess(crop_pct=1.5)
