"""The layout of a layer's output, measured on small networks whose layout is known."""

import pytest
import torch
from small_networks import Does, Transformer
from torch import nn
from torchvision import models

from embedcam.errors import LayerError
from embedcam.nets.layout import GivenLayout, Layout
from embedcam.nets.survey import Survey, measure


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("size", [(64, 64), (96, 48), (48, 128)])
@pytest.mark.parametrize("one_size", [True, False])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 0), (5, 0), (0, 3), (2, 1)])
def test_tokens_are_laid_out_on_their_grid(size, one_size, before, after):
    model = Transformer(before, after, size=size if one_size else None)
    layout = measure(model, "blocks.0", size)
    assert layout == Layout(0, 2, (1,), before, after, (size[0] // 8, size[1] // 8), size, one_size)
    maps = torch.rand(2, 12, size[0] // 8, size[1] // 8)
    more = [torch.rand(2, count, 12) for count in (before, after)]
    tokens = torch.cat([more[0], maps.flatten(2).transpose(1, 2), more[1]], dim=1)
    torch.testing.assert_close(layout.maps(tokens, size), maps)


def test_tokens_of_another_size_fill_another_grid():
    layout = measure(Transformer(1), "blocks.0", (64, 64))
    assert layout.maps(torch.rand(2, 1 + 12 * 6, 12), (96, 48)).shape == (2, 12, 12, 6)
    with pytest.raises(LayerError, match="70 tokens do not fill a grid of 12 x 6 cells on images of 96 x 48"):
        layout.maps(torch.rand(2, 71, 12), (96, 48))
    of_one_size = measure(Transformer(1, size=(64, 64)), "blocks.0", (64, 64))
    with pytest.raises(LayerError, match="do not fill a grid of 8 x 8"):
        of_one_size.maps(torch.rand(2, 73, 12), (96, 48))


def test_a_sequence_may_come_before_the_batch():
    layout = measure(Transformer(2, sequence_first=True), "last", (64, 48))
    assert (layout.batch, layout.cells, layout.channels, layout.prefix) == (1, (0,), 2, 2)
    assert layout.maps(torch.rand(50, 3, 12), (64, 48)).shape == (3, 12, 8, 6)


def patches(x):
    """Patches of 8 by views, as in networks without a patch convolution."""
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 8, 8, w // 8, 8).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, 64 * c)


@pytest.mark.parametrize("one_size", [True, False])
def test_tokens_without_a_patch_convolution_are_counted(one_size):
    stem = nn.Sequential(Does(patches), nn.Linear(192, 12))
    model = Transformer(1, stem=stem, size=(64, 48) if one_size else None)
    assert measure(model, "blocks.1.norm1", (64, 48)).grid == (8, 6)


def test_tokens_out_of_order_are_refused():
    # The four cells of a window follow one another, as in networks that attend within windows.
    def windows(x):
        b, c, h, w = x.shape
        return x.reshape(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(b, -1, c)

    model = Transformer(0, stem=nn.Sequential(nn.Conv2d(3, 12, 8, 8), Does(windows)))
    with pytest.raises(LayerError, match="'blocks.0' are not in the order of rows"):
        measure(model, "blocks.0", (128, 128))


def test_windows_in_the_batch_are_refused():
    def windows(x):
        b, c, h, w = x.shape
        return x.reshape(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)

    model = nn.Sequential(nn.Conv2d(3, 12, 8, 8), Does(windows), nn.LayerNorm(12))
    with pytest.raises(LayerError, match="none of its axes is the batch"):
        measure(model, "2", (64, 64))


@pytest.mark.parametrize("size", [(64, 64), (96, 48)])
@pytest.mark.parametrize("one_size", [True, False])
def test_channels_last_are_found_where_the_operations_are_unknown(size, one_size):
    class Unknown(nn.Module):
        def forward(self, x):
            assert not one_size or tuple(x.shape[1:3]) == (size[0] // 8, size[1] // 8)
            return x.flip(2).flip(2)

    model = nn.Sequential(nn.Conv2d(3, 16, 8, 8), Does(lambda x: x.permute(0, 2, 3, 1)), Unknown(), nn.LayerNorm(16))
    for layer in ("2", "3"):
        assert measure(model, layer, size) == Layout(0, 3, (1, 2))


def test_an_attention_matrix_is_no_map():
    class Scores(nn.Module):
        def forward(self, x):
            return (x @ x.transpose(1, 2))[:, None].softmax(dim=-1)

    model = nn.Sequential(nn.Conv2d(3, 8, 8, 8), Does(lambda x: x.flatten(2).transpose(1, 2)), Scores())
    with pytest.raises(LayerError, match="no two of its axes move"):
        measure(model, "2", (64, 64))


@pytest.mark.parametrize("heads", ["blocks.1.attn.q_norm"])
@pytest.mark.parametrize("size", [(64, 64), (128, 64)])
@pytest.mark.parametrize("one_size", [True, False])
def test_the_heads_of_an_attention_are_no_maps(heads, size, one_size):
    with pytest.raises(LayerError, match="no grid of cells"):
        measure(Transformer(1, size=size if one_size else None), heads, size)


def test_swin_keeps_channels_last_until_its_permute():
    model = models.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=3).eval()
    survey = Survey(model, (64, 128))
    for name in ("features.0", "features.1.1.attn", "features.2", "features.3", "norm"):
        assert survey.layout(name) == Layout(0, 3, (1, 2))
    for name in ("features.0.0", "permute"):
        assert survey.layout(name) == Layout(0, 1, (2, 3))


def test_convolutions_and_linear_layers_of_one_block_differ():
    model = models.convnext_tiny(weights=None, num_classes=2)
    survey = Survey(model, (64, 64))
    last = {"block.0": False, "block.1": True, "block.2": True, "block.3": True, "block.6": False}
    for name, channels_last in last.items():
        assert (survey.layout(f"features.1.0.{name}").cells == (1, 2)) is channels_last


@pytest.mark.parametrize("channels", [1, 3, 4, 7])
def test_images_of_any_depth_are_measured(channels):
    model = nn.Sequential(nn.Conv2d(channels, 5, 4, 4), nn.ReLU())
    assert measure(model, "1", (32, 32)) == Layout(0, 1, (2, 3))


def test_layers_that_give_no_grid_are_named():
    shared = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 2, 3, 2), shared, nn.Conv2d(2, 2, 1), shared, nn.Flatten())
    survey = Survey(model, (16, 16))
    with pytest.raises(LayerError, match="layer '1' runs 2 times in a forward pass"):
        survey.layout("1")
    with pytest.raises(LayerError, match=r"layer '4' has output \(2, 98\) for 2 images, which is no grid of cells"):
        survey.layout("4")


def test_augmented_copies_in_the_batch_are_refused():
    model = nn.Sequential(Does(lambda x: torch.cat([x, x.flip(3)])), nn.Conv2d(3, 2, 3, 2))
    with pytest.raises(LayerError, match="none of its axes is the batch, as in windows or augmented copies"):
        measure(model, "1", (16, 16))


def test_a_given_function_must_return_maps():
    given = GivenLayout(lambda output: output.transpose(1, 2))
    with pytest.raises(LayerError, match=r"to_maps must return .* got \(2, 4, 9\) from \(2, 9, 4\)"):
        given.maps(torch.rand(2, 9, 4), (16, 16))
