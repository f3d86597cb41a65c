import functools

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision import models

from embedcam.classmap.convolutional import ConvolutionalClassifier
from embedcam.errors import NetworkError

FAMILIES = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "vgg11",
)


def noise(*size, seed=1):
    return torch.randn(size[0], 3, *size[1:], generator=torch.Generator().manual_seed(seed))


def narrow_vgg11():
    with torch.device("meta"):
        model = models.vgg11(num_classes=20, init_weights=False)
    model.features = models.vgg.make_layers([8, "M", 16, "M", 32, "M", 64, "M", 512, "M"])
    for index, shape in ((0, (25088, 64)), (3, (64, 64)), (6, (64, 20))):
        model.classifier[index] = nn.Linear(*shape)
    return model


# Of the large families small members: tens of millions of random weights take seconds to draw.
SMALL = {
    "convnext_tiny": lambda: models.ConvNeXt(
        [models.convnext.CNBlockConfig(16, 32, 1), models.convnext.CNBlockConfig(32, None, 1)], num_classes=20
    ),
    "resnext50_32x4d": lambda: models.ResNet(
        models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=20, groups=32, width_per_group=4
    ),
    "swin_t": lambda: models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=20),
    "vgg11": narrow_vgg11,
}


@functools.cache
def classifier(name, size=96):
    """A seeded network whose batch norms fit its signals, so that its logits follow the image."""
    options = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    torch.manual_seed(0)
    model = SMALL[name]() if name in SMALL else models.get_model(name, num_classes=20, **options)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    if norms:
        with torch.no_grad():
            model.train()(noise(2, size, size, seed=0))
    return model.eval()


class Small(nn.Module):
    """Two stride-2 convolutions and a head of choice; a map of 8 x 8 at 32 pixels."""

    def __init__(self, head, pool=None):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU())
        self.pool = pool or nn.AdaptiveAvgPool2d(1)
        self.head = head

    def forward(self, images):
        return self.head(torch.flatten(self.pool(self.features(images)), 1))


@torch.inference_mode()
@pytest.mark.parametrize("name", FAMILIES)
def test_window_over_the_whole_map_gives_the_logits_of_the_classifier(name):
    # Where the head has a fixed grid, at the size that it was made for; elsewhere smaller ones are quicker.
    side = {"alexnet": 224, "vgg11": 224, "inception_v3": 128}.get(name, 96)
    model = classifier(name)
    convolutional = ConvolutionalClassifier(model, window="whole", input_size=(side, side))
    images = noise(1, side, side)
    expected, other = model(images), model(images.flip(1) * 0.5)
    assert (expected - other).abs().max() > 1e-3 * expected.abs().max()  # else the next line would prove nothing
    torch.testing.assert_close(convolutional(images)[..., 0, 0], expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_any_image_size_gives_a_logit_for_every_cell():
    model = classifier("resnet18")
    assert ConvolutionalClassifier(model)(noise(2, 128, 224)).shape == (2, 20, 4, 7)


@torch.inference_mode()
def test_window_of_one_cell_applies_the_linear_layer_to_every_cell():
    model = Small(nn.Linear(6, 5)).eval()
    images = noise(2, 32, 48)
    logits = ConvolutionalClassifier(model, window=1, input_size=(32, 32))(images)
    as_convolution = functional.conv2d(model.features(images), model.head.weight[:, :, None, None], model.head.bias)
    torch.testing.assert_close(logits, as_convolution)


@torch.inference_mode()
@pytest.mark.parametrize("window", [3, 5])
def test_window_averages_the_cells_that_exist_around_each_cell(window):
    model = Small(nn.Sequential(nn.Linear(6, 7), nn.Hardswish(), nn.Linear(7, 5))).eval()
    images = noise(1, 32, 24)
    maps, logits = (
        model.features(images),
        ConvolutionalClassifier(model, window=window, input_size=(32, 32))(images),
    )
    reach = window // 2
    assert logits.shape[2:] == maps.shape[2:]
    for i in range(maps.shape[2]):
        for j in range(maps.shape[3]):
            around = maps[:, :, max(i - reach, 0) : i + reach + 1, max(j - reach, 0) : j + reach + 1]
            torch.testing.assert_close(logits[:, :, i, j], model.head(around.mean(dim=(2, 3))))


@torch.inference_mode()
def test_stack_of_linear_layers_becomes_a_convolution_of_the_size_of_its_pooling():
    model = classifier("alexnet")
    images = noise(1, 256, 320)
    linears = [layer for layer in model.classifier if isinstance(layer, nn.Linear)]
    expected = model.features(images)
    for number, linear in enumerate(linears):
        weight = linear.weight.reshape(linear.out_features, -1, *((6, 6) if number == 0 else (1, 1)))
        expected = functional.conv2d(expected if number == 0 else expected.relu(), weight, linear.bias)
    logits = ConvolutionalClassifier(model)(images)
    assert logits.shape == (1, 20, 2, 4)
    torch.testing.assert_close(logits, expected)


@torch.inference_mode()
def test_maps_smaller_than_the_grid_of_the_head_give_one_place():
    model = classifier("alexnet")
    images = noise(1, 128, 128)
    torch.testing.assert_close(ConvolutionalClassifier(model)(images)[..., 0, 0], model(images))


def test_places_lie_on_their_cells_and_those_of_a_sliding_head_in_the_middle_of_theirs():
    pooled = ConvolutionalClassifier(Small(nn.Linear(6, 5)), input_size=(32, 32)).geometry((40, 48))
    assert pooled.cell_stride == (4, 4)
    assert pooled.first_cell_center == (0.5, 0.5)  # stride 2 with padding 1 keeps the first centre
    grid = Small(nn.Linear(6 * 9, 5), nn.AdaptiveAvgPool2d(3))
    slid = ConvolutionalClassifier(grid, input_size=(32, 32)).geometry((40, 48))
    assert slid.first_cell_center == (4.5, 4.5)


def test_head_that_does_not_average_is_refused_rather_than_converted_wrongly():
    with pytest.raises(NetworkError, match="logits then differ"):
        ConvolutionalClassifier(Small(nn.Linear(6, 5), nn.AdaptiveMaxPool2d(1)), input_size=(32, 32))


def test_head_that_also_looks_at_the_image_is_refused():
    class Peeking(Small):
        def forward(self, images):
            return super().forward(images) + images.mean(dim=(1, 2, 3))[:, None]

    with pytest.raises(NetworkError, match="more than the last feature maps"):
        ConvolutionalClassifier(Peeking(nn.Linear(6, 5)), input_size=(32, 32))


def test_network_for_one_image_size_is_refused():
    transformer = models.VisionTransformer(32, 8, 1, 1, 16, 16, num_classes=5)
    with pytest.raises(NetworkError, match=r"does not take images of 96 x 96 .*height"):
        ConvolutionalClassifier(transformer, input_size=(32, 32))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Conv2d(3, 5, 3), "not one tensor of logits"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)), "does not take images of 96 x 96"),
    ],
)
def test_module_without_logits_or_pooling_is_refused(model, reason):
    with pytest.raises(NetworkError, match=reason):
        ConvolutionalClassifier(model, input_size=(32, 32))


def test_untraceable_network_is_refused():
    class Branching(Small):
        def forward(self, images):
            return super().forward(images if images.sum() > 0 else -images)

    with pytest.raises(NetworkError, match=r"Branching cannot be made convolutional: .*control flow"):
        ConvolutionalClassifier(Branching(nn.Linear(6, 5)), input_size=(32, 32))


@pytest.mark.parametrize("window", [0, 2, -1, "all", 1.5])
def test_window_must_be_odd(window):
    with pytest.raises(NetworkError, match="odd"):
        ConvolutionalClassifier(Small(nn.Linear(6, 5)), window=window, input_size=(32, 32))


def test_names_must_be_one_a_class():
    with pytest.raises(NetworkError, match="5 classes, got 2 names"):
        ConvolutionalClassifier(Small(nn.Linear(6, 5)), ["cat", "dog"], input_size=(32, 32))
    assert ConvolutionalClassifier(Small(nn.Linear(6, 2)), input_size=(32, 32)).names == [
        "class 0",
        "class 1",
    ]


def test_model_keeps_its_mode_and_shares_its_parameters():
    model = Small(nn.Sequential(nn.Dropout(0.9), nn.Linear(6, 5))).train()
    convolutional = ConvolutionalClassifier(model, input_size=(32, 32))
    images = noise(1, 32, 32)
    with torch.no_grad():
        first = convolutional(images)
        torch.testing.assert_close(convolutional(images), first)  # no dropout
        model.head[1].bias += 1
        torch.testing.assert_close(convolutional(images), first + 1)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
