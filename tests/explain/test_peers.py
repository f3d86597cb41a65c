"""Equality with the packages grad-cam, torchcam and captum."""

import functools

import captum.attr
import numpy as np
import pytest
import pytorch_grad_cam
import torch
from torch.nn import functional
from torchvision import models

import embedcam
from embedcam.gradient import ClassScore, GradCAM, Similarity

torchcam_methods = pytest.importorskip("torchcam.methods")  # its newer versions need Python 3.11

TOLERANCE = 2e-6
THEIRS = {"gradcam": pytorch_grad_cam.GradCAM, "gradcam++": pytorch_grad_cam.GradCAMPlusPlus}
# Network -> last spatial layer, input size; small, since what is compared does not depend on the size.
NETWORKS = {
    "resnet18": ("layer4", 96),
    "vgg16": ("features.29", 64),
    "densenet121": ("features.norm5", 96),
    "mobilenet_v2": ("features.18", 96),
    "squeezenet1_1": ("features.12", 96),
    "alexnet": ("features.11", 80),
}
# A ReLU in place, after this layer, writes over what grad-cam keeps of it.
OVERWRITTEN = ("densenet121",)


@functools.lru_cache(maxsize=1)  # tests of one network follow each other
def network(name):
    torch.manual_seed(0)
    return models.get_model(name, weights=None).eval().requires_grad_(False)


def pictures(count, size):
    # The peers differentiate the whole network; by the images alone, that is quicker than by its weights too.
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1)).requires_grad_()


REFERENCE = torch.randn(1000, generator=torch.Generator().manual_seed(2))
TARGETS = {
    "class": (ClassScore(13), lambda output: output[13]),
    "similarity": (Similarity(REFERENCE), lambda output: output @ REFERENCE),
}


def grad_cam(method, model, layer, images, target, *, clone=False, reshape=None):
    """Run grad-cam; with `clone`, the layers after `layer` get a copy of what grad-cam keeps."""
    with THEIRS[method](model, [layer], reshape_transform=reshape) as cam:
        handle = layer.register_forward_hook(lambda _, __, output: output.clone() if clone else None)
        try:
            return cam(images, [target] * len(images))
        finally:
            handle.remove()


def resize(cells, size):
    return functional.interpolate(cells.detach()[:, None], (size, size), mode="bilinear")[:, 0].numpy()


def close(found, wanted):
    assert wanted.any()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("what", TARGETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_peers(name, what, count):
    model, (layer, size) = network(name), NETWORKS[name]
    module, images, (ours, theirs) = model.get_submodule(layer), pictures(count, size), TARGETS[what]
    clone = name in OVERWRITTEN
    found = {m: GradCAM(model, layer, method=m, placement="stretch")(images, ours) for m in THEIRS}
    for method in THEIRS:
        close(found[method].heatmaps, grad_cam(method, model, module, images, theirs, clone=clone))

    captum_cells = captum.attr.LayerGradCam(lambda images: ours(model(images)), module).attribute(
        images, relu_attributions=True
    )[:, 0]
    with torchcam_methods.GradCAM(model, layer) as extractor:
        handle = module.register_forward_hook(lambda _, __, output: output.clone() if clone else None)
        (torchcam_cells,) = extractor(scores=model(images), targets=theirs, normalized=False)
        handle.remove()
    raw = found["gradcam"].raw
    for cells in (captum_cells, torchcam_cells):
        close(raw / raw.max(), resize(cells, size) / raw.max())


@pytest.mark.parametrize("method", THEIRS)
@pytest.mark.parametrize(("name", "layer"), [("densenet121", "features.norm5"), ("alexnet", "features.10")])
def test_where_a_layer_is_overwritten_in_place_equals_grad_cam_on_a_clone(name, layer, method):
    model, (_, size) = network(name), NETWORKS[name]
    module, images, (ours, theirs) = model.get_submodule(layer), pictures(2, size), TARGETS["similarity"]
    found = GradCAM(model, layer, method=method, placement="stretch")(images, ours).heatmaps
    close(found, grad_cam(method, model, module, images, theirs, clone=True))
    assert np.abs(found - grad_cam(method, model, module, images, theirs)).max() > 0.01


@pytest.mark.parametrize("method", THEIRS)
def test_embedding_networks_equal_grad_cam_on_their_cosine(method):
    torch.manual_seed(0)
    net = embedcam.wrap(models.resnet18(weights=None), "layer4").eval()
    images = pictures(3, 96)
    with torch.no_grad():
        reference = net(images[2:])[0]
    found = GradCAM(net, method=method, placement="stretch")(images[:2], Similarity(reference))
    theirs = lambda output: output @ reference  # noqa: E731
    close(found.heatmaps, grad_cam(method, net, net.feature_layer, images[:2], theirs))


def vision_transformer():
    model = models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=20)
    torch.nn.init.normal_(model.heads.head.weight)
    return model


@pytest.mark.parametrize("method", THEIRS)
@pytest.mark.parametrize(
    ("make", "layer", "reshape"),
    [
        (
            vision_transformer,
            "encoder.layers.encoder_layer_1.ln_1",
            lambda tokens: tokens[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2),
        ),
        (
            lambda: models.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=20),
            "features.3",
            lambda output: output.permute(0, 3, 1, 2),
        ),
    ],
    ids=["vision transformer", "swin"],
)
def test_transformers_equal_grad_cam_with_its_reshape_transform(make, layer, reshape, method):
    torch.manual_seed(0)
    model, images, (ours, theirs) = make().eval(), pictures(2, 32), TARGETS["class"]
    found = GradCAM(model, layer, method=method, placement="stretch")(images, ours)
    module = model.get_submodule(layer)
    close(found.heatmaps, grad_cam(method, model, module, images, theirs, clone=True, reshape=reshape))
