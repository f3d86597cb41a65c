"""Known answers worked by hand: each operation puts cell i at a * i + b on the cells before it, from (1, 0.5) on."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from embedcam.errors import LayerError
from embedcam.nets import receptive_field
from embedcam.nets.receptive_field import Geometry, geometry


class Does(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.fixture
def followed(monkeypatch):
    """Geometry by arithmetic alone."""

    def refuse(*_):
        raise AssertionError("measured, not followed")

    monkeypatch.setattr(receptive_field, "probe", refuse)
    return geometry


@pytest.mark.parametrize(
    ("name", "layer", "stride", "center"),
    [
        ("resnet18", "layer4", 32, 0.5),  # every window is odd and centred
        ("vgg16", "features.30", 32, 16),  # five 2 x 2 poolings: 0.5 + 0.5 (1 + 2 + 4 + 8 + 16)
        ("densenet121", "features", 32, 14.5),  # three 2 x 2 poolings at strides 4, 8, 16: 0.5 + 0.5 (4 + 8 + 16)
        ("mobilenet_v2", "features.18", 32, 0.5),
        ("squeezenet1_1", "features.12", 16, 15.5),  # no padding: 0.5 + 1 + 2 + 4 + 8
        ("shufflenet_v2_x0_5", "conv5", 32, 0.5),  # channels split and shuffled on the way
        ("convnext_tiny", "features", 32, 16),  # patches of 4, then of 2; its norms turn the axes
        ("googlenet", "inception5b", 32, 22.5),  # four poolings without padding: 0.5 + 2 + 4 + 8 + 8
        ("efficientnet_b0", "features", 32, 0.5),
    ],
)
def test_geometry_of_known_networks(followed, name, layer, stride, center):
    model = models.get_model(name, weights=None)
    assert followed(model, layer, (224, 224)) == Geometry((stride, stride), (center, center))


def test_the_size_of_the_image_does_not_change_what_convolutions_do(followed):
    model = models.convnext_tiny(weights=None)
    assert followed(model, "features", (150, 200)) == Geometry((32, 32), (16, 16))  # 4 x 6 cells: not evenly tiled


def test_axes_are_kept_apart():
    model = nn.Sequential(nn.Conv2d(3, 4, (3, 5), stride=(2, 3), padding=(1, 0), dilation=(1, 2)), nn.ReLU())
    # y: 0.5 + (1 - 1); x: 0.5 + (2 * 4 / 2 - 0)
    assert geometry(model, "1", (32, 48)) == Geometry((2, 3), (0.5, 4.5))


def resize(mode, align_corners=None, **how):
    return Does(lambda x: F.interpolate(x, mode=mode, align_corners=align_corners, **how))


OPERATIONS = {
    # Transposed convolution: a = 1 / s, b = (p - d (k - 1) / 2) / s.
    "transposed 2": (nn.ConvTranspose2d(3, 3, 2, 2), 1 / 2, (0 - 0.5) / 2),
    "transposed 3": (nn.ConvTranspose2d(3, 3, 3, 2, 1, output_padding=1), 1 / 2, 0),
    "transposed 4": (nn.ConvTranspose2d(3, 3, 4, 2, 1), 1 / 2, (1 - 1.5) / 2),
    "transposed dilated": (nn.ConvTranspose2d(3, 3, 3, 3, 1, dilation=2), 1 / 3, (1 - 2) / 3),
    # Half-pixel centres: a = n / m, b = (a - 1) / 2. Aligned corners: a = (n - 1) / (m - 1), b = 0.
    "bilinear": (resize("bilinear", False, scale_factor=2), 1 / 2, -1 / 4),
    "bilinear smaller": (resize("bilinear", False, size=(8, 8)), 3, 1),
    "bilinear by scale": (resize("bilinear", False, scale_factor=1.3), 1 / 1.3, (1 / 1.3 - 1) / 2),
    "bilinear by size": (resize("bilinear", False, size=(31, 31)), 24 / 31, (24 / 31 - 1) / 2),
    "bilinear smoothed": (resize("bilinear", False, size=(8, 8), antialias=True), 3, 1),
    "bilinear aligned": (resize("bilinear", True, size=(47, 47)), 23 / 46, 0),
    "bicubic": (resize("bicubic", False, scale_factor=2), 1 / 2, -1 / 4),
    "bicubic aligned": (resize("bicubic", True, size=(47, 47)), 23 / 46, 0),
    # Nearest: cell i takes floor(i n / m); of i = 0, 1, 2 at 2 / 3 that is 0, 0, 1: off by 0, -2/3, -1/3.
    "nearest": (resize("nearest", scale_factor=2), 1 / 2, -1 / 4),
    "nearest uneven": (resize("nearest", size=(36, 36)), 2 / 3, -1 / 3),
    "nearest smaller": (resize("nearest", size=(12, 12)), 2, 0),
    # Nearest-exact: floor((i + 1/2) n / m).
    "nearest-exact": (resize("nearest-exact", scale_factor=2), 1 / 2, -1 / 4),
    "nearest-exact smaller": (resize("nearest-exact", size=(12, 12)), 2, 1),
    "area": (resize("area", size=(8, 8)), 3, 1),
    "padded": (Does(lambda x: F.pad(x, (2, 1, 2, 3))), 1, -2),
    "reflected": (nn.ReflectionPad2d(2), 1, -2),
    "replicated": (nn.ReplicationPad2d(3), 1, -3),
    "cropped by padding": (Does(lambda x: F.pad(x, (-2, -1, -2, 0))), 1, 2),
    "cropped": (Does(lambda x: x[:, :, 3:-1, 3:-2]), 1, 3),
    "cropped from the end": (Does(lambda x: x[:, :, -8:, -8:]), 1, 16),
    "every second": (Does(lambda x: x[..., 1::2, 1::2]), 2, 1),
    "adaptive average": (nn.AdaptiveAvgPool2d(6), 4, 1.5),
    "adaptive maximum": (nn.AdaptiveMaxPool2d((6, 6)), 4, 1.5),
    "whole": (nn.AdaptiveAvgPool2d(1), 24, 11.5),
    "even kernel, same": (nn.Conv2d(3, 3, 4, padding="same"), 1, 0.5),
    "unshuffled": (nn.PixelUnshuffle(4), 4, 1.5),
    "norm over channels": (models.convnext.LayerNorm2d(3), 1, 0),
    "added, where not followed": (Does(lambda x: x + x.flip(3)), 1, 0),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_each_operation_places_cells_as_worked_out_by_hand(followed, name):
    operation, a, b = OPERATIONS[name]
    # Before it, a stride of 2 from 0.5 + 1 on.
    model = nn.Sequential(nn.Conv2d(3, 3, 3, 2), operation, nn.Identity())
    found = followed(model, "2", (50, 50))  # 24 x 24 cells
    expected = (2 * a, 1.5 + 2 * b)
    assert found.cell_stride == pytest.approx((expected[0],) * 2)
    assert found.first_cell_center == pytest.approx((expected[1],) * 2)


LINEAR = [
    name for name in OPERATIONS if name not in ("adaptive maximum", "norm over channels", "added, where not followed")
]


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_each_operation_takes_its_gradient_from_there(name):
    operation, a, b = copy.deepcopy(OPERATIONS[name])
    for parameter in operation.parameters():
        nn.init.constant_(parameter, 1.0)
    x = torch.zeros(1, 3, 24, 24, dtype=torch.float64).requires_grad_()
    y = operation.double()(x)
    count = y.shape[2]
    # Uneven steps repeat after at most 6 cells; there and at the border only the mean is on the line.
    cells = range(4, 4 + (count - 8) // 6 * 6) if count >= 14 else range(count)
    errors = []
    for i in cells:
        (gradient,) = torch.autograd.grad(y[0, :, i].sum(), x, retain_graph=True)
        profile = gradient.sum(dim=(0, 1, 3))
        place = float((profile * torch.arange(24)).sum() / profile.sum())
        errors.append(place - (a * i + b))
    assert sum(errors) / len(errors) == pytest.approx(0, abs=1e-6)


def test_it_agrees_with_where_the_gradient_comes_from():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 2, 1), nn.AvgPool2d(3, 2), nn.Conv2d(4, 2, 3, 1, 2), nn.MaxPool2d(2))
    for module in model:
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1.0)  # symmetric, so that the centre of mass is the centre
    found = geometry(model, "2", (64, 64))
    image = torch.zeros(1, 3, 64, 64, requires_grad=True)
    maps = model[:3](image)
    for cell in (5, 8):
        (gradient,) = torch.autograd.grad(maps[0, 0, cell, cell], image, retain_graph=True)
        profile = gradient[0, 0].sum(dim=1)
        mean = float((profile * (torch.arange(64) + 0.5)).sum() / profile.sum())
        assert mean == pytest.approx(found.first_cell_center[0] + cell * found.cell_stride[0], abs=1e-4)


def test_residual_paths_that_meet_are_averaged():
    class Meeting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.join = nn.Conv2d(3, 2, 1, 2), nn.Conv2d(3, 2, 2, 2), nn.Identity()

        def forward(self, x):
            return self.join(self.a(x) + self.b(x))

    # Centres 0.5 and 1.0 at the same stride.
    assert geometry(Meeting(), "join", (8, 8)) == Geometry((2, 2), (0.75, 0.75))


def test_padding_at_the_end_alone_shifts_the_cells(followed):
    """TensorFlow's "same" padding of a stride of 2 puts all of it behind an even image."""
    pad = Does(lambda x: F.pad(x, (0, 1, 0, 1)))
    model = nn.Sequential(pad, nn.Conv2d(3, 4, 3, 2), pad, nn.Conv2d(4, 4, 3, 2))
    assert followed(model, "3", (64, 96)) == Geometry((4, 4), (3.5, 3.5))  # 0.5 + 1 + 2, not 0.5


def test_a_pixel_unshuffling_stem(followed):
    model = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 8, 3, 2, 1))
    assert followed(model, "1", (64, 96)) == Geometry((8, 8), (2, 2))


def test_a_decoder_that_resizes_bilinearly_and_joins_a_skip(followed):
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.fine, self.coarse = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 2, 2)
            self.mix, self.pool = nn.Conv2d(12, 4, 3, 1, 1), nn.AdaptiveAvgPool2d(1)

        def forward(self, x):
            fine = self.fine(x)  # (2, 0.5)
            coarse = self.coarse(fine)  # (4, 1.5)
            size = fine.shape[2:]
            # Back at a stride of 2: 1.5 - 4 / 4 = 0.5; the whole map as one cell, spread again: 0.5 as well.
            up, whole = (F.interpolate(m, size, mode="bilinear") for m in (coarse, self.pool(fine)))
            return self.mix(torch.cat([up, whole, fine], dim=1))

    assert followed(Decoder(), "mix", (64, 96)) == Geometry((2, 2), (0.5, 0.5))


def test_a_layer_that_does_not_run_is_an_error():
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    model.spare = nn.Identity()
    model.forward = model[0].forward
    with pytest.raises(LayerError, match="'spare' did not run"):
        geometry(model, "spare", (8, 8))
