"""Undone strides: the old cells and the embedding stay the same, new cells are those of a dilated network."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from embedcam.errors import NetworkError
from embedcam.nets import DenseNet, wrap
from embedcam.nets.embedding import EmbeddingNet

SIDE = 96


def noise(*size):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def seen_by(net, images, fine=None):
    with torch.inference_mode():
        return net.activations(images, fine)


def resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18().eval()


def dilated():
    """Torchvision's own dilated ResNet, with bottlenecks (it refuses basic blocks), and the plain one."""
    torch.manual_seed(0)
    plain = torchvision.models.resnet50().eval()
    wide = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    wide.load_state_dict(plain.state_dict())
    return plain, wide


def test_new_cells_are_those_of_the_dilated_network():
    plain, wide = dilated()
    images = noise(SIDE, 128)
    dense = DenseNet(wrap(plain, "layer4"), 2)
    maps = seen_by(dense, images).maps
    expected = seen_by(wrap(wide, "layer4"), images).maps
    assert dense.density == (4, 4)
    assert maps.shape == expected.shape
    assert torch.allclose(maps, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "densenet121", "convnext_tiny", "squeezenet1_0", "swin_t"])
def test_old_cells_and_embedding_stay_the_same(name):
    torch.manual_seed(0)
    net = wrap(torchvision.models.get_model(name).eval())
    dense = DenseNet(net)
    for size in ((224, 224), (160, 256)):
        plain, seen = seen_by(net, noise(*size)), seen_by(dense, noise(*size))
        y, x = dense.density
        assert (y, x) == (2, 2)
        assert seen.maps.shape[2] in (2 * plain.maps.shape[2], 2 * plain.maps.shape[2] - 1)
        assert torch.allclose(seen.maps[:, :, ::y, ::x], plain.maps, atol=1e-4 * float(plain.maps.abs().max()))
        assert torch.allclose(seen.embeddings, plain.embeddings, atol=1e-5)


class Functional(nn.Module):
    """Strides by a function in a block of several branches, as in Inception, with odd sizes and a pool that overlaps."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, stride=2)

        def forward(self, x):
            return torch.cat([self.conv(x), functional.max_pool2d(x, 3, 2)], dim=1)

    def __init__(self):
        super().__init__()
        self.stem, self.block, self.last = nn.Conv2d(3, 8, 3, padding=1), self.Block(), nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x):
        return self.last(self.block(self.stem(x)).relu()).relu().mean(dim=(2, 3))


def test_a_stride_inside_a_block_runs_the_block_at_all_offsets():
    torch.manual_seed(0)
    module = Functional().eval()
    dense = DenseNet(wrap(module, "last"))
    images = noise(21, 24)
    seen = seen_by(dense, images)
    inner = module.stem(images).detach()
    every = torch.cat(
        [
            functional.conv2d(inner, module.block.conv.weight, module.block.conv.bias),
            functional.max_pool2d(inner, 3, 1),
        ],
        dim=1,
    ).relu()
    expected = functional.conv2d(every, module.last.weight, module.last.bias, padding=2, dilation=2)
    assert seen.maps.shape == expected.shape == (2, 8, 19, 22)
    # Where a step later there is no place any more, the next layers see the last cell again and not zero.
    assert torch.allclose(seen.maps[:, :, :-2, :-2], expected[:, :, :-2, :-2], atol=1e-5)


def test_cell_embeddings_add_up():
    torch.manual_seed(0)
    net = EmbeddingNet("tiny", 16, hidden=24, image_size=64).eval()
    dense = DenseNet(net)
    seen = seen_by(dense, noise(64, 96))
    cells, plain = dense.cells(seen), net.cells(seen_by(net, noise(64, 96)))
    assert dense.decomposable
    assert torch.allclose(cells.embeddings[:, :, ::2, ::2], plain.embeddings, atol=1e-5)
    assert torch.allclose(cells.embeddings.mean(dim=(2, 3)) + cells.rest, seen.embeddings, atol=1e-5)


def test_another_layer_of_a_copy_leaves_the_network_as_it_is():
    net = DenseNet(wrap(resnet(), "layer4"))
    other = copy.copy(net)
    other.layer = "layer3"
    assert (net.layer, net.net.layer, net.map_size) == ("layer4", "layer4", (14, 14))
    assert (other.layer, other.net.layer, other.map_size) == ("layer3", "layer3", (28, 28))
    assert net.sha256() == net.net.sha256()


def test_the_finer_layer_keeps_its_cells():
    net = wrap(resnet(), "layer4")
    fine = seen_by(DenseNet(net, 2), noise(SIDE, SIDE), "layer3").fine
    assert torch.allclose(fine, seen_by(net, noise(SIDE, SIDE), "layer3").fine, atol=1e-5)


@pytest.mark.parametrize(("layer", "undo"), [("conv1", 2), ("layer4", 6)])
def test_too_few_strides_are_refused(layer, undo):
    with pytest.raises(NetworkError, match="fewer than"):
        DenseNet(wrap(resnet(), layer), undo)


def test_a_vision_transformer_is_refused():
    net = wrap(torchvision.models.vit_b_32().eval())
    with pytest.raises(NetworkError, match="cannot be undone"):
        DenseNet(net)
