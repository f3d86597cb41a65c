"""Cell embeddings add up to the embedding."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import embedcam
from embedcam.errors import NetworkError
from embedcam.nets.embedding import EmbeddingNet


def decomposed(net, images):
    with torch.inference_mode():
        seen = net.eval().activations(images)
        return seen, net.cells(seen)


def total(cells):
    return cells.embeddings.mean(dim=(2, 3)) + cells.rest


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("hidden", [None, 24])
def test_cell_embeddings_add_up_to_the_embedding(hidden, metric):
    net = EmbeddingNet("tiny", 16, hidden=hidden, metric=metric, image_size=64)
    seen, cells = decomposed(net, torch.randn(3, 3, 64, 96))
    assert cells.embeddings.shape == (3, 16, *seen.maps.shape[2:])
    assert torch.allclose(total(cells), seen.embeddings, atol=1e-5)
    assert not cells.rest.any()


def test_of_a_linear_head_each_cell_has_the_heads_output_for_its_features():
    net = EmbeddingNet("tiny", 16, metric="euclidean", image_size=64)
    seen, cells = decomposed(net, torch.randn(2, 3, 64, 64))
    expected = net.head(seen.maps.movedim(1, 3)).movedim(3, 1)
    torch.testing.assert_close(cells.embeddings, expected, rtol=1e-4, atol=1e-5)


def test_only_layers_whose_cells_stay_apart_until_they_are_pooled_are_decomposable():
    net = EmbeddingNet("tiny", 16, image_size=64).eval()
    assert net.decomposable
    net.layer = "features.13"  # before the ReLU, which works on each cell alone
    assert net.decomposable
    net.layer = "features.3"  # before other convolutions
    assert not net.decomposable
    with pytest.raises(NetworkError, match=r"'features.3': conv2d mixes its cells; choose another layer"):
        net.cells(net.activations(torch.randn(1, 3, 64, 64)))


class Wrapped(nn.Module):
    """Maps (B, 8, h, w) of both signs, and a head."""

    def __init__(self, head):
        super().__init__()
        self.trunk, self.head = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1)), head

    def forward(self, x):
        return self.head(self.trunk(x))


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class ChannelsLast(nn.Module):
    """The end of a Swin transformer."""

    def __init__(self):
        super().__init__()
        self.norm, self.last = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x):
        return self.last(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).mean((-1, -2)))


class Tokens(ChannelsLast):
    """The end of a vision transformer whose tokens are averaged."""

    def forward(self, x):
        return self.last(self.norm(x.flatten(2).transpose(1, 2)).mean(dim=1))


class GeM(nn.Module):
    def forward(self, x):
        return functional.avg_pool2d(x.clamp(min=1e-6).pow(3), (x.size(-2), x.size(-1))).pow(1 / 3).flatten(1)


class Normalised(nn.Module):
    def forward(self, x):
        z = x.mean(dim=(2, 3))
        z /= z.norm(dim=1, keepdim=True)
        return z * 2


def pool():
    return nn.AdaptiveAvgPool2d(1)


HEADS = {
    "no further layer": lambda: nn.Sequential(pool(), nn.Flatten()),
    "linear": lambda: nn.Sequential(pool(), nn.Flatten(), nn.Linear(8, 5)),
    "ReLU before the pooling": lambda: nn.Sequential(nn.ReLU(True), pool(), nn.Flatten(), nn.Linear(8, 5)),
    "convolution before the pooling": lambda: nn.Sequential(nn.Conv2d(8, 5, 1), nn.ReLU(), pool(), nn.Flatten()),
    "hidden layer": lambda: nn.Sequential(
        pool(), nn.Flatten(), nn.Linear(8, 9), nn.Hardswish(), nn.Dropout(), nn.Linear(9, 5)
    ),
    "layer norm": lambda: nn.Sequential(pool(), nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 5)),
    "batch norm": lambda: nn.Sequential(pool(), nn.Flatten(), nn.Linear(8, 5, bias=False), nn.BatchNorm1d(5)),
    "channels last": ChannelsLast,
    "tokens": Tokens,
    "GeM": GeM,
    "max": lambda: nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    "normalised inside": Normalised,
    "functional.normalize": lambda: Function(lambda x: functional.normalize(x.mean((2, 3)), dim=-1)),
    "mean and maximum": lambda: Function(lambda x: torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)),
    "gate": lambda: Function(lambda x: x.mean((2, 3)) * torch.sigmoid(x.mean((2, 3)))),
}
FULLY_CONNECTED = {
    "fully connected": lambda: nn.Sequential(nn.Flatten(), nn.Linear(8 * 49, 9), nn.ReLU(), nn.Linear(9, 5)),
    "global convolution": lambda: nn.Sequential(nn.Conv2d(8, 8, 7, groups=8), nn.Flatten(), nn.Linear(8, 5)),
}


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("head", [*HEADS, *FULLY_CONNECTED])
def test_the_head_inside_a_module_of_ones_own_is_found(head, metric):
    torch.manual_seed(0)
    side = 28 if head in FULLY_CONNECTED else 32
    module = Wrapped({**HEADS, **FULLY_CONNECTED}[head]()).eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean.normal_(), layer.running_var.uniform_(0.5, 2)
    net = embedcam.wrap(module, "trunk", metric=metric, preprocess=embedcam.Preprocess((side, side)))
    images = torch.randn(3, 3, side, side if head in FULLY_CONNECTED else 40)
    seen, cells = decomposed(net, images)
    assert torch.allclose(total(cells), seen.embeddings, atol=1e-5)
    torch.testing.assert_close(seen.embeddings, net(images))
    assert cells.embeddings.flatten(2).std(dim=2).max() > 0 and not cells.rest.any()
