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


class Patches(ChannelsLast):
    """The same with a class token that is left out."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.tokens = nn.Identity()

    def forward(self, x):
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        return self.last(self.norm(self.tokens(x))[:, 1:].mean(dim=1))


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


def test_a_class_token_that_is_left_out_leaves_nothing_to_the_rest():
    net = embedcam.wrap(Wrapped(Patches()), "head.tokens", preprocess=embedcam.Preprocess((32, 32)))
    seen, cells = decomposed(net, torch.randn(2, 3, 32, 40))
    assert torch.allclose(total(cells), seen.embeddings, atol=1e-5)
    assert not cells.rest.any()


def test_a_head_with_a_fixed_grid_is_decomposed_at_that_grid_only():
    module = Wrapped(nn.Sequential(nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(8 * 49, 5)))
    net = embedcam.wrap(module, "trunk", preprocess=embedcam.Preprocess((28, 28)))
    seen, cells = decomposed(net, torch.randn(2, 3, 28, 28))
    assert torch.allclose(total(cells), seen.embeddings, atol=1e-5)
    with pytest.raises(NetworkError, match="a sum over 7 x 7 cells only, the images have 7 x 10"):
        decomposed(net, torch.randn(2, 3, 28, 40))


def test_a_class_token_alone_has_no_cell_embeddings():
    module = VisionTransformer()
    net = embedcam.wrap(module, "blocks.1", preprocess=embedcam.Preprocess((32, 32)))
    assert not net.decomposable
    with pytest.raises(NetworkError, match=r"'blocks.1': no cell of it adds to the embedding; choose another layer"):
        decomposed(net, torch.randn(1, 3, 32, 32))


class Attention(nn.Module):
    """Attention by a function of torch or written out, with LayerScale."""

    def __init__(self, fused):
        super().__init__()
        self.fused, self.qkv, self.proj = fused, nn.Linear(12, 36), nn.Linear(12, 12)
        self.scale = nn.Parameter(torch.rand(12))

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            x = functional.scaled_dot_product_attention(q, k, v)
        else:
            x = (q @ k.transpose(-2, -1) / 2).softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).flatten(2)) * self.scale


class Block(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(12), Attention(fused), nn.LayerNorm(12)
        self.mlp = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    def __init__(self, fused=True):
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 12, 8, 8), nn.Parameter(torch.randn(1, 1, 12))
        self.blocks, self.norm = nn.Sequential(Block(fused), Block(fused)), nn.LayerNorm(12)
        self.last = nn.Linear(12, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.norm(self.blocks(torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)))
        return self.last(x[:, 0])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("fused", [True, False])
def test_a_class_tokens_cells_are_the_value_path_of_the_last_block(fused, metric):
    torch.manual_seed(1)
    module = VisionTransformer(fused)
    net = embedcam.wrap(module, "blocks.1.norm1", metric=metric, preprocess=embedcam.Preprocess((32, 32)))
    images = torch.randn(2, 3, 32, 40)
    seen, cells = decomposed(net, images)
    assert torch.allclose(total(cells), seen.embeddings, atol=1e-5)

    with torch.no_grad():  # with the attention and the deviation of the last norm held, written out token by token
        x = module.patches(images).flatten(2).transpose(1, 2)
        block, x = module.blocks[1], module.blocks[0](torch.cat([module.token.expand(2, -1, -1), x], dim=1))
        q, k, v = block.attn.qkv(block.norm1(x)).reshape(2, 21, 3, 3, 4).permute(2, 0, 3, 1, 4)
        weights = (q[:, :, :1] @ k.transpose(-2, -1) / 2).softmax(dim=-1)[:, :, 0]
        deviation = (block(x)[:, 0].var(dim=1, unbiased=False) + 1e-5).sqrt()[:, None]
        length = module(images).norm(dim=1, keepdim=True) if metric == "cosine" else 1
        for cell in range(20):
            added = (weights[:, :, cell + 1, None] * v[:, :, cell + 1]).flatten(1) @ block.attn.proj.weight.T
            added = added * block.attn.scale
            added = (added - added.mean(dim=1, keepdim=True)) / deviation * module.norm.weight
            expected = 20 * (added @ module.last.weight.T) / length
            torch.testing.assert_close(cells.embeddings[:, :, cell // 5, cell % 5], expected, rtol=1e-3, atol=1e-5)


class AttentionPool(nn.Module):
    """The mean over cells attends to all cells, as in the ResNets of CLIP."""

    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2)

    def forward(self, x):
        x = x.flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(dim=0, keepdim=True), x])
        return self.attend(x[:1], x, x, need_weights=False)[0].squeeze(0)


class Probe(nn.Module):
    """A learnt query attends to all cells, and an MLP follows, as in SigLIP."""

    def __init__(self):
        super().__init__()
        self.query, self.attend = nn.Parameter(torch.randn(1, 1, 8)), nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.mlp = nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        x = self.attend(self.query.expand(x.shape[0], -1, -1), x, x)[0]
        return (x + self.mlp(self.norm(x)))[:, 0]


@pytest.mark.parametrize("head", [AttentionPool, Probe])
def test_attention_that_pools_is_decomposed(head):
    torch.manual_seed(0)
    net = embedcam.wrap(Wrapped(head()), "trunk", preprocess=embedcam.Preprocess((32, 32)))
    seen, cells = decomposed(net, torch.randn(3, 3, 32, 40))
    assert torch.allclose(total(cells), seen.embeddings, atol=1e-5)
    assert cells.embeddings.flatten(2).std(dim=2).max() > 0


def test_half_precision_is_decomposed_within_its_rounding():
    torch.manual_seed(0)
    net = embedcam.wrap(Wrapped(HEADS["linear"]()).bfloat16(), "trunk", preprocess=embedcam.Preprocess((32, 32)))
    seen, cells = decomposed(net, torch.randn(3, 3, 32, 32))
    assert cells.embeddings.dtype == torch.float32
    assert torch.allclose(total(cells), seen.embeddings, atol=0.03)


class CellsOf(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net.cells(self.net.activations(images))


@pytest.mark.parametrize(
    ("make", "layer", "free"),
    [
        (lambda: Wrapped(HEADS["hidden layer"]()), "trunk", (0, 2, 3)),
        (lambda: Wrapped(HEADS["GeM"]()), "trunk", (0,)),
        (VisionTransformer, "blocks.1.norm1", (0,)),
        (lambda: Wrapped(Probe()), "trunk", (0,)),
    ],
)
def test_cell_embeddings_are_exported(make, layer, free, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    net = embedcam.wrap(make(), layer, preprocess=embedcam.Preprocess((32, 32))).eval()
    assert net.decomposable
    example = torch.randn(2, 3, 32, 64 if len(free) > 1 else 32)
    dynamic = (dict.fromkeys(free, torch.export.Dim.DYNAMIC),)
    program = torch.onnx.export(CellsOf(net).eval(), (example,), dynamo=True, dynamic_shapes=dynamic, verbose=False)
    program.save(tmp_path / "cells.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "cells.onnx")
    images = torch.randn(3, 3, 32, 96 if len(free) > 1 else 32)
    found = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    for one, other in zip(found, decomposed(net, images)[1], strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other, rtol=1e-4, atol=1e-5)


class PooledBesideCells(nn.Module):
    """The mean of the cells is normalised among them, as in DINOv3's ConvNeXt."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        pooled, cells = x.mean(dim=(2, 3)), x.flatten(2).transpose(1, 2)
        return self.norm(torch.cat([pooled.unsqueeze(1), cells], dim=1))[:, 0]


def test_the_mean_of_cells_beside_them_is_decomposed():
    torch.manual_seed(0)
    net = embedcam.wrap(Wrapped(PooledBesideCells()), "trunk", preprocess=embedcam.Preprocess((32, 32)))
    seen, cells = decomposed(net, torch.randn(3, 3, 32, 40))
    assert net.require_decomposable().whole and not cells.rest.any()
    assert torch.allclose(total(cells), seen.embeddings, atol=1e-5)
