"""Preprocessing as people have it gives the inputs that its own library gives."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models, transforms
from torchvision.transforms import v2

from embedcam import Preprocess
from embedcam.errors import DataError

BICUBIC = transforms.InterpolationMode.BICUBIC
NORMALIZE = transforms.Normalize((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def picture(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(300, 401), (401, 300), (224, 224), (97, 1000), (60, 60)])
@pytest.mark.parametrize(
    "transform",
    [
        transforms.Compose(
            [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), NORMALIZE],
        ),
        transforms.Compose([transforms.Resize(232, BICUBIC), transforms.CenterCrop((224, 224)), transforms.ToTensor()]),
        transforms.Compose([transforms.Resize((64, 32)), transforms.ToTensor(), NORMALIZE]),
        v2.Compose([v2.Resize((64, 32)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), NORMALIZE]),
    ],
)
def test_transforms_of_torchvision_are_read(size, transform):
    preprocess = Preprocess.from_transforms(transform)
    assert not preprocess.transform
    np.testing.assert_allclose(preprocess(picture(*size)), transform(picture(*size)).numpy(), atol=1e-5)


def test_presets_of_torchvisions_weights_are_read():
    preset = models.get_model_weights("efficientnet_b1").DEFAULT.transforms()
    preprocess = Preprocess.of(preset)
    assert (preprocess.input_size, preprocess.crop_pct) == ((240, 240), 240 / 255)
    difference = np.abs(preprocess(picture(300, 200)) - preset(picture(300, 200)).numpy())
    assert difference.mean() < 0.01  # torchvision may resize tensors, which rounds differently


def test_transforms_of_timm_are_read():
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_vit")
    own = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    for preprocess in (Preprocess.from_timm(model), Preprocess.of(own)):
        assert not preprocess.transform
        np.testing.assert_allclose(preprocess(picture(300, 401)), own(picture(300, 401)).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ViTImageProcessor", {}),
        ("CLIPImageProcessor", {}),
        ("BitImageProcessor", {}),
        ("SiglipImageProcessor", {"do_rescale": True}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    ],
)
def test_image_processors_are_read(kind, options):
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, kind)(**options)
    preprocess = Preprocess.of(processor)
    assert not preprocess.transform
    smooth = picture(6, 8).resize((401, 300), Image.Resampling.BICUBIC)  # an odd margin is rounded the other way
    theirs = np.asarray(processor(smooth, return_tensors="np")["pixel_values"][0])
    assert theirs.shape[1:] == preprocess.input_size
    assert np.abs(preprocess(smooth) - theirs).mean() < 0.05  # of values with a deviation of 1


def test_an_unknown_step_makes_the_whole_a_callable_with_a_word(caplog):
    def sharpen(image):
        return image

    transform = transforms.Compose([sharpen, transforms.Resize((64, 32)), transforms.ToTensor()])
    with caplog.at_level(logging.WARNING, "embedcam"):
        preprocess = Preprocess.of(transform)
    assert "Compose is called as it is (sharpen cannot be read); heat maps are placed over the whole" in caplog.text
    assert preprocess.input_size == (64, 32)
    np.testing.assert_array_equal(preprocess(picture(50, 50)), transform(picture(50, 50)).numpy())
    with pytest.raises(DataError, match="makes inputs of 64 x 32 pixels, the size cannot be chosen"):
        preprocess.resized_to((128, 64))


def test_a_callable_of_several_sizes_is_refused_at_the_picture_that_differs():
    preprocess = Preprocess.of(transforms.Compose([transforms.Resize(32), transforms.ToTensor()]))
    with pytest.raises(DataError, match=r"shape \(3, 32, 64\) .* expected \(3, 32, 32\); resize all pictures to one"):
        preprocess(picture(100, 200))


def test_what_is_no_preprocessing_is_refused():
    with pytest.raises(DataError, match="fails on an RGB Pillow image"):
        Preprocess.of(lambda image: image.shape)
    with pytest.raises(DataError, match=r"returns an array of shape \(224,\)"):
        Preprocess.of(lambda image: np.zeros(224))


def test_a_file_holds_all_but_the_callable():
    preprocess = Preprocess((64, 32), crop_pct=0.9)
    assert Preprocess.recorded(preprocess.record()) == preprocess
    custom = Preprocess.of(lambda image: np.zeros((3, 8, 8)))
    read = Preprocess.recorded(custom.record())
    assert read == custom
    with pytest.raises(DataError, match="are prepared by .*<lambda>, which no file holds"):
        read(picture(9, 9))
