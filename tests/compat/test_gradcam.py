import numpy as np
import pytest
import torch
from torch.nn import functional
from torchvision import models

from embedcam.compat.gradcam import GradCAM, GradCAMpp, visualize_cam
from embedcam.errors import DataError, LayerError, TargetError
from embedcam.show.overlay import colorize

IMAGE = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return models.resnet18(weights=None).eval()


def formula(model, layer, image, class_idx, plus_plus):
    """pytorch-gradcam's own steps, with hooks and a whole backward pass."""
    seen = {}
    handles = [
        layer.register_forward_hook(lambda _, __, output: seen.update(activations=output)),
        layer.register_full_backward_hook(lambda _, __, gradients: seen.update(gradients=gradients[0])),
    ]
    logit = model(image)
    score = logit[:, logit.max(1)[-1] if class_idx is None else class_idx].squeeze()
    model.zero_grad()
    score.backward()
    for handle in handles:
        handle.remove()
    gradients, activations = seen["gradients"], seen["activations"].detach()
    if plus_plus:
        below = 2 * gradients**2 + (activations * gradients**3).sum((2, 3), keepdim=True)
        alpha = gradients**2 / (torch.where(below != 0, below, torch.ones_like(below)) + 1e-7)
        weights = (alpha * functional.relu(score.detach().exp() * gradients)).sum((2, 3), keepdim=True)
    else:
        weights = gradients.mean((2, 3), keepdim=True)
    cells = functional.relu((weights * activations).sum(1, keepdim=True))
    found = functional.interpolate(cells, image.shape[2:], mode="bilinear", align_corners=False)
    return (found - found.min()) / (found.max() - found.min()), logit.detach()


@pytest.mark.parametrize("class_idx", [None, 7])
@pytest.mark.parametrize(("method", "plus_plus"), [(GradCAM, False), (GradCAMpp, True)])
def test_masks_and_logits_are_those_of_pytorch_gradcam(model, method, plus_plus, class_idx):
    cam = method.from_config(model_type="resnet", arch=model, layer_name="layer4")
    mask, logit = cam(IMAGE, class_idx=class_idx)
    expected, expected_logit = formula(model, model.layer4, IMAGE, class_idx, plus_plus)
    assert mask.shape == (1, 1, 96, 128)
    torch.testing.assert_close(mask, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(logit, expected_logit)


@pytest.mark.parametrize(
    "made",
    [
        lambda model: GradCAM(
            {"type": "resnet", "arch": model, "layer_name": "layer3_basicblock1", "input_size": (96, 128)}
        ),
        lambda model: GradCAM({"type": "resnet", "arch": model, "layer_name": "layer3_basicblock1"}, True),
        lambda model: GradCAM(model, model.layer3[1]),
        lambda model: GradCAM(arch=model, target_layer=model.layer3[1]),
        lambda model: GradCAM(model, "layer3.1"),
        lambda model: GradCAM.from_config(model, "resnet", "layer3_basicblock1"),
    ],
    ids=["dictionary", "dictionary, verbose", "module", "keywords", "name", "from_config"],
)
def test_every_way_to_name_the_layer_means_the_same(model, made):
    expected, _ = formula(model, model.layer3[1], IMAGE, 3, plus_plus=False)
    torch.testing.assert_close(made(model)(IMAGE, 3)[0], expected, atol=2e-5, rtol=0)


def test_verbose_prints_the_size_of_the_maps(model, capsys):
    GradCAM({"type": "resnet", "arch": model, "layer_name": "layer4", "input_size": (96, 128)}, verbose=True)
    assert capsys.readouterr().out == "saliency_map size : torch.Size([3, 4])\n"


def test_nothing_is_left_on_the_model(model):
    model.zero_grad()
    GradCAM(model, "layer4")(IMAGE)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_each_image_of_a_batch_has_its_own_mask(model):
    images = torch.cat([IMAGE, -IMAGE])
    masks, logits = GradCAMpp(model, "layer4")(images)
    assert (masks.shape, logits.shape) == ((2, 1, 96, 128), (2, 1000))
    for image, mask in zip(images, masks, strict=True):
        torch.testing.assert_close(mask[None], GradCAMpp(model, "layer4")(image[None])[0], atol=1e-5, rtol=0)


def test_a_mask_without_heat_is_zero(model):
    class Dark(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.head = torch.nn.Conv2d(3, 2, 3), torch.nn.Linear(2, 2)
            torch.nn.init.constant_(self.head.weight, -1)

        def forward(self, images):
            return self.head(self.features(images).square().mean(dim=(2, 3)))

    model = Dark()
    torch.nn.init.constant_(model.features.bias, 9)  # maps are positive, gradients negative
    mask, _ = GradCAM(model, "features")(IMAGE)
    assert not mask.any()


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda model: GradCAM({"arch": model}), LayerError, "lacks layer_name"),
        (lambda model: GradCAM(model), LayerError, "must be a module or a name, got None"),
        (lambda model: GradCAM(model, torch.nn.ReLU()), LayerError, "this ReLU is not a layer of ResNet"),
        (lambda model: GradCAM(model, "layer9"), LayerError, "did you mean"),
        (lambda model: GradCAM(model, "layer4")(IMAGE, 1000), TargetError, "1000"),
        (lambda model: GradCAM(model, "layer4")(IMAGE[0]), DataError, "expected images"),
    ],
)
def test_what_cannot_be_explained_is_named(model, make, error, says):
    with pytest.raises(error, match=says):
        make(model)


@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_visualize_cam_adds_the_colours_and_divides_by_the_maximum(alpha):
    mask = torch.rand(1, 1, 5, 7, generator=torch.Generator().manual_seed(2))
    image = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(3))
    heatmap, result = visualize_cam(mask, image, alpha)
    colors = colorize(mask[0, 0].numpy(), "jet").transpose(2, 0, 1) / 255 * alpha
    np.testing.assert_allclose(heatmap, colors, rtol=1e-6)
    total = colors + image[0].numpy()
    np.testing.assert_allclose(result, total / total.max(), rtol=1e-6)
    torch.testing.assert_close(visualize_cam(mask[0, 0], image[0], alpha)[1], result)


def test_its_colours_are_about_those_of_opencv():
    cv2 = pytest.importorskip("cv2")
    mask = torch.linspace(0, 1, 256).reshape(1, 1, 16, 16)
    heatmap, _ = visualize_cam(mask, torch.zeros(1, 3, 16, 16))
    theirs = cv2.applyColorMap(np.arange(256, dtype=np.uint8).reshape(16, 16), cv2.COLORMAP_JET)[..., ::-1] / 255
    assert np.abs(heatmap.permute(1, 2, 0).numpy() - theirs).mean() < 0.03


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (2, 3, 5, 7), (1, 1, 5, 7)])
def test_visualize_cam_wants_one_image_of_the_masks_size(shape):
    with pytest.raises(DataError, match="do not match"):
        visualize_cam(torch.rand(1, 1, 5, 7), torch.rand(shape))
