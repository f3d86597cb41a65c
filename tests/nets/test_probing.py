"""Geometry where it is not followed: measured, and compared with what is known by hand."""

import copy

import pytest
import torch
from small_networks import Does
from torch import nn
from torchvision import models

from embedcam.nets.probing import probe
from embedcam.nets.receptive_field import Geometry, geometry
from embedcam.nets.survey import measure


def space_to_depth(x, block):
    """By views and a permutation, as many networks do, which is not followed."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // block, block, w // block, block).permute(0, 1, 3, 5, 2, 4)
    return x.reshape(b, c * block * block, h // block, w // block)


class Tokens(nn.Module):
    """A small vision transformer of any image shape, with a class token."""

    def __init__(self, patch=8, dim=48, stride=None):
        super().__init__()
        self.patches = nn.Conv2d(3, dim, patch, stride or patch)
        self.token = nn.Parameter(torch.randn(1, 1, dim))
        layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.encoder(torch.cat([self.token.expand(len(x), -1, -1), tokens], dim=1))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# Of what is measured, in cells; the even tiling is half a cell off where windows are odd and centred.
TOLERANCE = 0.15


def off(one, other, size):
    """Largest distance between the cells that two geometries place in an image, in cells of the other."""
    worst = 0.0
    for axis in (0, 1):
        stride = other.cell_stride[axis]
        for i in (0, int(size[axis] / stride) - 1):
            first, second = (g.first_cell_center[axis] + i * g.cell_stride[axis] for g in (one, other))
            worst = max(worst, abs(first - second) / stride)
    return worst


def strided():
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.AvgPool2d(2)),
        nn.Conv2d(32, 32, 3, 1, 1),
    )


def like_vgg():
    blocks = [(nn.Conv2d(a, b, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2)) for a, b in ((3, 24), (24, 32), (32, 48))]
    return nn.Sequential(*(module for block in blocks for module in block))


@pytest.mark.parametrize(
    ("model", "layer", "size"),
    [
        (strided, "5", (96, 136)),  # 0.5 + 0.5 + 0 + 2 at stride 8
        (like_vgg, "8", (64, 96)),
        (models.resnet18, "layer2", (128, 128)),
        (models.resnet18, "layer3", (128, 160)),
    ],
)
def test_what_is_measured_agrees_with_what_is_followed(model, layer, size):
    model = model()
    assert off(probe(model, layer, size, measure(model, layer, size)), geometry(model, layer, size), size) < TOLERANCE


def test_the_candidate_that_agrees_is_taken_as_it_is():
    model, exact = strided(), Geometry((8, 8), (3, 3))
    half_a_cell_off, too_wide = Geometry((8, 8), (7, 7)), Geometry((9, 9), (3, 3))
    assert probe(model, "5", (96, 136), measure(model, "5", (96, 136)), [half_a_cell_off, too_wide, exact]) == exact


def test_a_grid_that_leaves_a_rest_of_the_image_is_measured():
    model = nn.Sequential(nn.Conv2d(3, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2), nn.ReLU(), nn.AvgPool2d(2))
    exact = Geometry((8, 8), (5, 5))  # 11 x 11 cells: the even tiling would be (8.73, 4.36)
    assert geometry(model, "4", (96, 96)) == exact
    assert (
        off(probe(model, "4", (96, 96), measure(model, "4", (96, 96))), exact, (96, 96)) < 2 * TOLERANCE
    )  # the stride is measured as well


@pytest.mark.parametrize(("block", "center"), [(2, 1), (4, 2)])
def test_cells_rearranged_by_hand_are_measured(block, center):
    stem = Does(lambda x: space_to_depth(x, block))
    model = nn.Sequential(stem, nn.Conv2d(3 * block**2, 48, 3, 2, 1), nn.ReLU(), nn.Conv2d(48, 48, 3, 1, 1))
    exact = Geometry((2 * block, 2 * block), (center, center))  # a block's middle; the even tiling would be twice that
    assert off(geometry(model, "3", (96, 64)), exact, (96, 64)) < TOLERANCE


@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_tokens_of_a_transformer_tile_the_image(size):
    assert geometry(Tokens(), "encoder", size) == Geometry((8, 8), (4, 4))


def test_patches_that_overlap_or_leave_a_rest_are_as_the_patch_convolution_says():
    # 10 x 10 patches of 8 at stride 6 reach pixel 62 of 64: the even tiling would be (6.4, 3.2).
    assert geometry(Tokens(patch=8, stride=6), "encoder", (64, 64)) == Geometry((6, 6), (4, 4))


def test_vit():
    assert geometry(models.vit_b_32(weights=None), "encoder", (224, 224)) == Geometry((32, 32), (16, 16))


@pytest.mark.parametrize(("stage", "stride"), [(1, 4), (3, 8), (5, 16), (7, 32)])
def test_stages_of_a_swin_transformer(stage, stride):
    model = models.swin_t(weights=None)
    # Windows of 7 x 7 cells see one another's cells within them; the cells lie evenly all the same.
    assert geometry(model, f"features.{stage}", (128, 160)) == Geometry((stride, stride), (stride / 2, stride / 2))


def test_attention_within_windows_moves_no_cell():
    model = models.swin_t(weights=None)
    assert geometry(model, "features.1.0.attn", (224, 224)) == Geometry((4, 4), (2, 2))


class Twice(nn.Module):
    """Turns maps over and back, which is not followed and moves nothing."""

    def forward(self, x):
        return x.flip(3).flip(3)


def test_a_geometry_met_on_the_way_is_taken_if_the_measurement_agrees():
    model = nn.Sequential(*strided(), Twice())
    assert geometry(model, "6", (96, 136)) == geometry(model, "5", (96, 136))


def test_a_geometry_met_on_the_way_is_left_if_cells_have_moved():
    moved = Does(lambda x: x.roll((1, 2), dims=(2, 3)))  # by a cell and by two
    model = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), moved)
    assert off(geometry(model, "3", (96, 96)), Geometry((4, 4), (-3.5, -7.5)), (96, 96)) < TOLERANCE


@pytest.mark.parametrize(
    "without",
    [lambda x: x.detach(), lambda x: x * 0, lambda x: x / 0, lambda x: x.mean((2, 3), keepdim=True).expand_as(x)],
)
def test_without_places_in_the_gradient_the_image_is_tiled(without):
    model = nn.Sequential(Does(lambda x: without(space_to_depth(x, 8))))
    assert geometry(model, "0", (64, 48)) == Geometry((8, 8), (4, 4))


def test_one_row_of_cells_is_measured_along_the_other_axis_alone():
    model = nn.Sequential(Does(lambda x: space_to_depth(x, 4)), nn.Conv2d(48, 48, 3, 2, 1))
    found = geometry(model, "1", (8, 96))
    assert (found.cell_stride[0], found.first_cell_center[0]) == (8, 4)
    assert off(found, Geometry((8, 8), (4, 2)), (8, 96)) < TOLERANCE


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(models.mobilenet_v2(weights=None).features[:5], Twice()).train()
    model[0][3].eval()
    model[0][0].requires_grad_(False)
    before = [(m.training, len(m._forward_hooks)) for m in model.modules()]
    needed = [p.requires_grad for p in model.parameters()]
    values = copy.deepcopy(model.state_dict())
    geometry(model, "1", (64, 64))
    assert [(m.training, len(m._forward_hooks)) for m in model.modules()] == before
    assert [p.requires_grad for p in model.parameters()] == needed
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_frozen_parameters_and_inference_mode_change_nothing(around):
    model = nn.Sequential(Does(lambda x: space_to_depth(x, 2)), nn.Conv2d(12, 48, 3, 2, 1))
    free = geometry(model, "1", (64, 64))
    assert off(free, Geometry((4, 4), (1, 1)), (64, 64)) < TOLERANCE
    model.requires_grad_(False)
    with around():
        assert geometry(model, "1", (64, 64)) == free


def test_parameters_made_under_inference_mode_have_no_gradient():
    with torch.inference_mode():
        model = nn.Sequential(Does(lambda x: space_to_depth(x, 2)), nn.Conv2d(12, 48, 3, 2, 1))
    assert geometry(model, "1", (64, 64)) == Geometry((4, 4), (2, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_too(dtype):
    assert geometry(Tokens().to(dtype), "encoder", (64, 64)) == Geometry((8, 8), (4, 4))


def test_a_compiled_model_is_measured_too():
    model = torch.compile(Tokens(), backend="eager")
    assert geometry(model, "encoder", (64, 64)) == Geometry((8, 8), (4, 4))
