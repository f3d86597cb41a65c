"""Networks of all shapes: the layer is right, or the refusal says what to do."""

import logging

import pytest
import torch
from small_networks import (
    AttentionByHand,
    AttentionOfThree,
    Convolutional,
    Dictionary,
    Does,
    MeanOfTokens,
    Transformer,
)
from torch import nn
from torch.nn import functional

import embedcam
from embedcam.errors import LayerError, NetworkError
from embedcam.nets.reach import require_gradient

SIZE = (64, 48)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def wrap(module, size=SIZE, **options):
    return embedcam.wrap(module.eval(), preprocess=embedcam.Preprocess(size), **options)


@pytest.mark.parametrize("before", [1, 5])
@pytest.mark.parametrize("kind", [AttentionByHand, AttentionOfThree])
@pytest.mark.parametrize("one_size", [True, False])
def test_with_a_class_token_the_layer_is_the_norm_before_the_last_attention(before, kind, one_size):
    net = wrap(Transformer(before, size=SIZE if one_size else None, attention=kind))
    assert (net.layer, net.channels, net.map_size) == ("blocks.1.norm1", 12, (8, 6))
    assert net.reading().prefix == before
    require_gradient(net)


def test_the_layer_suits_the_output_that_is_named():
    assert wrap(Dictionary(), output="pooler_output").layer == "blocks.1.norm1"
    assert wrap(Dictionary(), output=lambda output: output["last_hidden_state"].mean(1)).layer == "last"
    assert wrap(MeanOfTokens()).layer == "last"


def test_a_head_of_zeros_does_not_change_the_layer():
    class Classifier(Transformer):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(12, 3)
            nn.init.zeros_(self.head.weight)

        def forward(self, x):
            return self.head(super().forward(x))

    assert wrap(Classifier()).layer == "blocks.1.norm1"


class Branches(nn.Module):
    """Both see the stem; their parts of the embedding are joined."""

    def __init__(self, stem):
        super().__init__()
        self.stem = stem
        self.whole, self.parts = (nn.Conv2d(6 if stem else 3, 8, 3, 2, 1) for _ in range(2))

    def forward(self, x):
        x = self.stem(x) if self.stem else x
        return torch.cat([self.whole(x).relu().mean((2, 3)), self.parts(x).relu().amax((2, 3))], dim=1)


def test_branches_are_explained_at_the_last_layer_before_them():
    assert wrap(Branches(nn.Conv2d(3, 6, 3, 2, 1))).layer == "stem"


def test_branches_without_a_layer_before_them_are_refused_with_the_way_out():
    with pytest.raises(LayerError, match="joins branches, such as those of layers 'parts' and 'whole'"):
        wrap(Branches(None))
    assert wrap(Branches(None), layer="whole").channels == 8


def test_a_residual_connection_is_no_branch():
    class Residual(Convolutional):
        def __init__(self):
            super().__init__()
            self.one, self.skip = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 1)
            self.end = nn.ReLU()

        def forward(self, x):
            x = self.trunk(x)
            return self.end(self.one(x) + self.skip(x)).mean((2, 3))

    assert wrap(Residual()).layer == "end"


class Flipped(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Convolutional()

    def forward(self, x):
        return self.net(x) + self.net(x.flip(3))


def test_augmentation_inside_is_refused_with_what_to_wrap():
    with pytest.raises(LayerError, match=r"run more than once .*: wrap\(module.net\)"):
        wrap(Flipped())
    with pytest.raises(LayerError, match="layer 'net.trunk' runs 2 times in a forward pass"):
        _ = wrap(Flipped(), layer="net.trunk").channels
    assert wrap(Flipped().net).layer == "trunk"


def test_augmented_copies_as_a_batch_are_refused():
    class Copies(Convolutional):
        def forward(self, x):
            return super().forward(torch.cat([x, x.flip(3)])).view(2, len(x), -1).mean(0)

    with pytest.raises(LayerError):
        wrap(Copies())
    with pytest.raises(LayerError, match="augmented copies of each image"):
        _ = wrap(Copies(), layer="trunk").channels


def test_an_output_with_another_first_dimension_is_refused():
    class Crops(Convolutional):
        def forward(self, x):
            return super().forward(x).repeat(5, 1)

    with pytest.raises(NetworkError, match=r"must return embeddings \(B, D\) for 2 images, got \(10, 4\)"):
        wrap(Crops())


class NoGrad(Convolutional):
    def forward(self, x):
        with torch.no_grad():
            x = self.trunk(x)
        return self.project(x.mean((2, 3)))


def test_gradients_pass_through_no_grad_and_leave_no_trace():
    module = NoGrad()
    net = wrap(module)
    assert net.layer == "trunk"
    require_gradient(net)
    with torch.enable_grad():
        assert module.trunk(torch.rand(1, 3, 8, 8)).requires_grad
        assert not module.trunk[0].weight.grad


def test_a_graph_that_is_cut_is_refused_with_the_reason():
    class Cut(Convolutional):
        def forward(self, x):
            return self.project(self.trunk(x).mean((2, 3)).detach())

    class Inference(Convolutional):
        def forward(self, x):
            with torch.inference_mode():
                return super().forward(x)

    class Codes(Convolutional):
        def forward(self, x):
            return super().forward(x).sign()

    for kind, message in ((Cut, "cuts the graph"), (Inference, "inference_mode"), (Codes, "zero everywhere")):
        with pytest.raises(NetworkError, match=message):
            require_gradient(wrap(kind(), layer="trunk"))


def test_a_block_whose_cells_the_class_token_never_sees_is_refused():
    with pytest.raises(LayerError, match="does not depend on the cells of layer 'blocks.1', only on its other tokens"):
        require_gradient(wrap(Transformer(), layer="blocks.1"))


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_another_depth_are_built_and_explained(channels):
    net = wrap(Convolutional(channels))
    assert net.in_channels == channels
    images = [(torch.randn(channels, *SIZE), k % 2) for k in range(8)]
    database = embedcam.build_database(net, images, clusters=2, top_k=4)
    assert embedcam.Explainer(net, database)(torch.stack([image for image, _ in images])).heatmaps.shape == (8, *SIZE)


def test_an_image_is_rearranged_before_the_first_convolution():
    module = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert (wrap(module).in_channels, wrap(module).layer) == (3, "2")


def test_a_view_that_needs_the_usual_order_gets_it():
    module = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), Does(lambda x: x.view(len(x), -1)))
    net = wrap(module)
    assert net.memory_format is torch.contiguous_format
    assert wrap(Convolutional()).memory_format is torch.channels_last
    images = [(torch.randn(3, *SIZE), k % 2) for k in range(8)]
    database = embedcam.build_database(net, images, clusters=2, top_k=4)
    embedcam.Explainer(net, database)(images[0][0][None])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", [Transformer, Convolutional])
def test_number_types_change_no_layer(dtype, kind):
    net = wrap(kind().to(dtype))
    assert net.layer == ("blocks.1.norm1" if kind is Transformer else "trunk")
    require_gradient(net)


def test_autocast_inside_changes_no_layer():
    class Half(Transformer):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x)

    assert wrap(Half()).layer == "blocks.1.norm1"


def test_a_layer_may_be_given_as_a_module_and_its_maps_by_a_function():
    module = Transformer(3)

    def to_maps(output):
        return output[:, 3:].transpose(1, 2).unflatten(2, (8, 6))

    net = wrap(module, layer=module.blocks[0], to_maps=to_maps)
    assert (net.layer, net.channels, net.map_size) == ("blocks.0", 12, (8, 6))
    by_name = wrap(module, layer="blocks.0")
    images = torch.randn(2, 3, *SIZE)
    torch.testing.assert_close(net.activations(images).maps, by_name.activations(images).maps)
    with pytest.raises(LayerError, match="name it too"):
        wrap(module, to_maps=to_maps)
    with pytest.raises(LayerError, match="the given Linear is not inside this Transformer"):
        wrap(module, layer=nn.Linear(2, 2))


def test_models_that_need_a_text_too_are_refused_with_what_to_wrap():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.visual, self.text = Convolutional(), nn.Embedding(4, 4)

        def forward(self, image, text):
            return self.visual(image), self.text(text)

    with pytest.raises(NetworkError, match=r"takes image, text, not images alone; wrap .*one of visual, text"):
        wrap(Both())


def test_layer_and_grid_are_logged_and_a_coarse_grid_is_a_warning(caplog):
    with caplog.at_level(logging.INFO, logger="embedcam"):
        wrap(Transformer(), size=(64, 64))
        assert "Transformer is explained at layer 'blocks.1.norm1': 12 channels on 8 x 8 cells" in caplog.text
        assert "too few" not in caplog.text
        wrap(Transformer(), size=(64, 32))
    assert "has only 8 x 4 cells on images of 64 x 32 pixels" in caplog.text


def test_errors_of_the_forward_pass_come_through_unchanged():
    class Broken(Convolutional):
        def forward(self, x):
            return self.scale * super().forward(x)

    with pytest.raises(AttributeError, match="'Broken' object has no attribute 'scale'"):
        wrap(Broken())
    with pytest.raises(AttributeError, match="'Broken' object has no attribute 'scale'"):
        _ = wrap(Broken(), layer="trunk").map_size


def test_pooled_stripes_are_not_the_grid():
    class Stripes(Convolutional):
        def __init__(self):
            super().__init__()
            self.reduce = nn.Conv2d(8, 4, 1)

        def forward(self, x):
            return self.reduce(functional.adaptive_avg_pool2d(self.trunk(x), (4, 1))).flatten(1)

    assert wrap(Stripes()).layer == "trunk"


def test_an_early_layer_is_not_taken_because_later_ones_are_not_understood():
    class Unknown(Convolutional):
        """Cells are spread over the batch after the first convolution."""

        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 8, 4, 4)
            self.later = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))

        def forward(self, x):
            x = self.first(x).permute(0, 2, 3, 1)
            return self.later(x.reshape(-1, 4, 8)).reshape(len(x), -1, 8).mean(1)

    with pytest.raises(LayerError, match=r"layout of the last layers of Unknown is not known, such as that of 'later'"):
        wrap(Unknown())
