"""Images and gradients that break careless code: Grad-CAM and class maps have an answer or say what is wrong."""

import numpy as np
import pytest
import torch
from torch import nn

from embedcam.classmap.classmap import class_maps
from embedcam.classmap.convolutional import ConvolutionalClassifier
from embedcam.errors import DataError
from embedcam.explain.explanation import FLAT, NOT_FINITE
from embedcam.explain.weighting import WEIGHTINGS
from embedcam.gradient import ClassScore, GradCAM, Proxy, SegmentationScore, Similarity, TripletMargin

METHODS = WEIGHTINGS.names()
NOISE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
NAN, INFINITE = (torch.full((1, 3, 16, 16), value) for value in (float("nan"), float("inf")))


def classifier():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    ).eval()


def note_of(explanation):
    ((note,),) = explanation.notes
    return note


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_odd_images_get_a_map_or_a_note(method):
    cam = GradCAM(classifier(), "1", method=method)

    def explain(images):
        found = cam(images, ClassScore(2))
        assert found.heatmaps.shape == (len(images), *images.shape[2:]) and np.isfinite(found.raw).all()
        return found

    for lit in (NOISE[:1], 1e15 * NOISE[:1], torch.randn(1, 3, 1, 8000), torch.randn(1, 3, 8000, 1)):
        found = explain(lit)
        assert found.notes == [[]] and found.heatmaps.max() == 1
    for dark in (torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 1e-41), torch.randn(1, 3, 1, 1)):
        assert note_of(explain(dark)) == FLAT
    for unusable in (NAN, INFINITE):
        found = explain(unusable)
        assert note_of(found) == NOT_FINITE and not found.heatmaps.any()
    assert explain(NOISE[:0]).notes == []


@pytest.mark.parametrize("value, note", [(0.0, FLAT), (1e-41, FLAT), (float("nan"), NOT_FINITE)])
@pytest.mark.parametrize("method", METHODS)
def test_odd_parameters_get_a_note(value, note, method):
    model = classifier()
    nn.init.constant_(model[4].weight, value)
    found = GradCAM(model, "1", method=method)(NOISE[:1], ClassScore(0))
    assert note_of(found) == note and not found.heatmaps.any()


@pytest.mark.parametrize("several", [1, [0, 3]])
def test_every_target_takes_an_empty_batch(several):
    model = classifier()
    none = NOISE[:0]
    for target in (ClassScore(), Proxy(torch.ones(4)), Similarity(torch.ones(4)), TripletMargin(*torch.eye(4)[:2])):
        assert len(GradCAM(model, "1")(none, target)) == 0
    found = GradCAM(model[:2], "0")(none, SegmentationScore(several))
    assert all(len(each) == 0 for each in (found.values() if isinstance(found, dict) else [found]))


@pytest.mark.parametrize(
    "images",
    [NOISE[0], NOISE.to(torch.uint8), NOISE[:, :, :0], torch.zeros(2, 3, 16, 16, dtype=torch.int64)],
    ids=["one image", "uint8", "no pixel", "integers"],
)
def test_what_is_no_image_batch_is_named(images):
    for explain in (
        lambda: GradCAM(classifier(), "1")(images, ClassScore()),
        lambda: class_maps(ConvolutionalClassifier(classifier(), input_size=(16, 16)), images),
    ):
        with pytest.raises(DataError, match=r"expected images \(B, 3, H, W\) of normalised floats, got torch"):
            explain()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_images_of_another_precision_are_explained_in_the_model_s(dtype):
    cam = GradCAM(classifier(), "1")
    given = NOISE.to(dtype)
    expected, found = cam(given.float(), ClassScore(2)), cam(given, ClassScore(2))
    np.testing.assert_array_equal(found.heatmaps, expected.heatmaps)


def test_class_maps_of_odd_images():
    convolutional = ConvolutionalClassifier(classifier(), input_size=(16, 16))
    assert class_maps(convolutional, NOISE[:0]) == []
    for images in (torch.zeros(1, 3, 16, 16), NOISE[:1, :, :1, :1], torch.randn(1, 3, 1, 8000), 1e15 * NOISE[:1]):
        (found,) = class_maps(convolutional, images, class_threshold=0.2)
        assert found.best.shape == images.shape[2:] and found.detections
        assert 0 <= found.best.min() <= found.best.max() <= 1
    for unusable in (NAN, INFINITE):
        with pytest.raises(DataError, match="image 1 gives probabilities that are not finite"):
            class_maps(convolutional, torch.cat([NOISE[:1], unusable]))


@pytest.mark.parametrize("method", [method for method in METHODS if method != "gradcam"])
def test_weights_of_gradients_that_are_zero_or_denormal_are_numbers(method):
    maps = torch.rand(1, 2, 3, 3)
    for value in (0.0, 1e-41, 1e-20, -1e-41):
        weights = WEIGHTINGS[method](maps, torch.full_like(maps, value))
        assert weights.isfinite().all() and (weights >= 0).all()
        # Without an epsilon, half of each gradient counts: the share of what is next to nothing is not nothing.
        if method == "gradcam++-exact":
            torch.testing.assert_close(weights, torch.full((1, 2), 4.5 * max(value, 0.0)), rtol=0.01, atol=1e-44)
