import numpy as np
import pytest
import torch
from torchvision import models

pytest.importorskip("pytorch_grad_cam")

import pytorch_grad_cam as theirs
from pytorch_grad_cam.utils.image import show_cam_on_image as their_overlay
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget as TheirTarget

from embedcam.compat import pytorch_grad_cam as ours
from embedcam.errors import DataError, EmbedcamError, LayerError, TargetError

IMAGES = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return models.resnet18(weights=None).eval()


@pytest.mark.parametrize("layers", [["layer4"], ["layer3", "layer4"]], ids="+".join)
@pytest.mark.parametrize("targets", [None, [3, 8]], ids=["best class", "targets"])
@pytest.mark.parametrize("name", ["GradCAM", "GradCAMPlusPlus"])
def test_maps_are_those_of_grad_cam(model, name, targets, layers):
    modules = [model.get_submodule(layer) for layer in layers]
    with getattr(ours, name)(model=model, target_layers=modules) as cam:
        found = cam(input_tensor=IMAGES, targets=targets and [ours.ClassifierOutputTarget(c) for c in targets])
    with getattr(theirs, name)(model=model, target_layers=modules) as cam:
        expected = cam(input_tensor=IMAGES, targets=targets and [TheirTarget(c) for c in targets])
    assert (found.shape, found.dtype) == ((2, 96, 96), np.float32)
    # Of several layers, grad-cam scales each before resizing it, and we after.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 if len(layers) == 1 else 5e-3)


def test_targets_of_grad_cam_and_functions_are_understood(model):
    cam = ours.GradCAM(model, [model.layer4])
    expected = cam(IMAGES, [ours.ClassifierOutputTarget(5)] * 2)
    np.testing.assert_array_equal(cam(IMAGES, [TheirTarget(5)] * 2), expected)
    np.testing.assert_array_equal(cam(IMAGES, [lambda output: output[5]] * 2), expected)


def test_the_output_is_kept(model):
    cam = ours.GradCAM(model, [model.layer4])
    cam(IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(cam.outputs, model(IMAGES))


def test_transformers_are_explained_with_the_same_reshape_transform():
    torch.manual_seed(0)
    vit = models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=20).eval()
    torch.nn.init.normal_(vit.heads.head.weight)
    layer, images = vit.encoder.layers[-1].ln_1, IMAGES[:, :, :32, :32]

    def reshape(tokens):
        return tokens[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)

    found = ours.GradCAM(vit, [layer], reshape_transform=reshape)(images)
    expected = theirs.GradCAM(vit, [layer], reshape_transform=reshape)(images, None)
    assert expected.any()
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"targets": [ours.ClassifierOutputTarget(1)]}, "1 targets for 2 images"),
        ({"targets": [lambda output: output[:2]] * 2}, "one scalar per image"),
        ({"aug_smooth": True}, "aug_smooth"),
        ({"eigen_smooth": True}, "eigen_smooth"),
    ],
)
def test_what_cannot_be_explained_is_named(model, options, says):
    with pytest.raises(TargetError, match=says):
        ours.GradCAM(model, [model.layer4])(IMAGES, **options)


def test_a_layer_of_another_model_is_refused(model):
    with pytest.raises(LayerError, match="is not a layer of ResNet"):
        ours.GradCAM(model, [models.resnet18(weights=None).layer4])


@pytest.mark.parametrize("use_rgb", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_overlays_are_about_those_of_grad_cam(use_rgb, weight):
    rng = np.random.default_rng(0)
    image, mask = rng.random((40, 50, 3), dtype=np.float32), rng.random((40, 50), dtype=np.float32)
    found = ours.show_cam_on_image(image, mask, use_rgb=use_rgb, image_weight=weight)
    expected = their_overlay(image, mask, use_rgb=use_rgb, image_weight=weight)
    assert found.dtype == np.uint8
    # Matplotlib's jet is not quite OpenCV's.
    assert np.abs(found.astype(int) - expected).mean() < (8 * (1 - weight) or 0.5)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"img": np.full((4, 4, 3), 255.0)}, DataError, "divide 8-bit pixels by 255"),
        ({"img": np.zeros((5, 4, 3))}, DataError, r"must be \(4, 4, 3\)"),
        ({"colormap": 2}, EmbedcamError, "'jet' here"),
        ({"image_weight": 1.5}, EmbedcamError, "image_weight must lie in"),
    ],
)
def test_what_cannot_be_drawn_is_named(change, error, says):
    with pytest.raises(error, match=says):
        ours.show_cam_on_image(**{"img": np.zeros((4, 4, 3)), "mask": np.zeros((4, 4)), **change})


def test_a_black_overlay_stays_black():
    black = ours.show_cam_on_image(np.zeros((2, 2, 3)), np.zeros((2, 2)), image_weight=1.0)
    np.testing.assert_array_equal(black, np.zeros((2, 2, 3), np.uint8))
