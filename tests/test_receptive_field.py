"""Known answers worked by hand: centre += (dilation (kernel - 1) / 2 - padding) * stride, from 0.5 on."""

import pytest
import torch
from torch import nn
from torchvision import models

from embedcam.errors import LayerError
from embedcam.receptive_field import Geometry, geometry


@pytest.mark.parametrize(
    ("name", "layer", "stride", "center"),
    [
        ("resnet18", "layer4", 32, 0.5),  # every window is odd and centred
        ("vgg16", "features.30", 32, 16),  # five 2 x 2 poolings: 0.5 + 0.5 (1 + 2 + 4 + 8 + 16)
        ("densenet121", "features", 32, 14.5),  # three 2 x 2 poolings at strides 4, 8, 16: 0.5 + 0.5 (4 + 8 + 16)
        ("mobilenet_v2", "features.18", 32, 0.5),
        ("squeezenet1_1", "features.12", 16, 15.5),  # no padding: 0.5 + 1 + 2 + 4 + 8
        ("shufflenet_v2_x0_5", "conv5", 32, 0.5),  # channels split and shuffled on the way
        ("vit_b_32", "encoder", 32, 16),  # tokens tile the image
    ],
)
def test_geometry_of_known_networks(name, layer, stride, center):
    model = models.get_model(name, weights=None)
    assert geometry(model, layer, (224, 224)) == Geometry((stride, stride), (center, center))


def test_axes_are_kept_apart():
    model = nn.Sequential(nn.Conv2d(3, 4, (3, 5), stride=(2, 3), padding=(1, 0), dilation=(1, 2)), nn.ReLU())
    # y: 0.5 + (1 - 1); x: 0.5 + (2 * 4 / 2 - 0)
    assert geometry(model, "1", (32, 48)) == Geometry((2, 3), (0.5, 4.5))


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


def test_the_model_is_left_in_its_mode():
    model = models.mobilenet_v2(weights=None).train()
    model.features[3].eval()
    before = [module.training for module in model.modules()]
    geometry(model, "features", (64, 64))
    assert [module.training for module in model.modules()] == before


def test_a_layer_that_does_not_run_is_an_error():
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    model.spare = nn.Identity()
    model.forward = model[0].forward
    with pytest.raises(LayerError, match="'spare' did not run"):
        geometry(model, "spare", (8, 8))
