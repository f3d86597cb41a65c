import pytest
import torch
from torch import nn

import embedcam
from embedcam.errors import LayerError, NetworkError
from embedcam.explain.gradcam import GradCAM

IMAGES = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
        self.project = nn.Linear(8, 4)

    def forward(self, x):
        return self.project(self.trunk(x).mean(dim=(2, 3)))


class WithLogits(Plain):
    def __init__(self):
        super().__init__()
        self.classify = nn.Linear(4, 3)

    def forward(self, x):
        z = super().forward(x)
        return self.classify(z), z


class TwoBranches(nn.Module):
    """A coarse and a fine branch, put side by side, as re-identification networks have them."""

    def __init__(self):
        super().__init__()
        self.coarse, self.fine = nn.Conv2d(3, 5, 8, 8), nn.Conv2d(3, 7, 3, 2, 1)

    def forward(self, x):
        return {"z": torch.cat([branch(x).relu().mean(dim=(2, 3)) for branch in (self.coarse, self.fine)], dim=1)}


def preprocess():
    return embedcam.Preprocess((48, 48))


@pytest.mark.parametrize(
    ("module", "output", "layer", "channels"),
    [
        (Plain, None, "trunk", 8),
        (WithLogits, 1, "trunk", 8),
        (WithLogits, lambda output: output[1], "trunk.2", 8),
        (TwoBranches, "z", "fine", 7),
        (TwoBranches, "z", "coarse", 5),
    ],
)
def test_a_module_of_ones_own_is_built_and_explained(module, output, layer, channels):
    torch.manual_seed(0)
    own = module()
    net = embedcam.wrap(own, layer, output=output, preprocess=preprocess())
    labelled = [(image, label) for label in (0, 1) for image in torch.rand(6, 3, 48, 48)]
    before = {name: parameter.clone() for name, parameter in own.named_parameters()}

    db = embedcam.build_database(net, labelled, clusters=3, top_k=4, pairs=4)
    explanation = embedcam.Explainer(net, db)(IMAGES)

    assert net.channels == channels == db.network.channels
    assert explanation.heatmaps.shape == (2, 48, 48)
    assert own.training
    assert all(
        parameter.grad is None and torch.equal(parameter, before[name]) for name, parameter in own.named_parameters()
    )


def test_the_layer_is_found_when_none_is_named():
    assert embedcam.wrap(Plain(), preprocess=preprocess()).layer == "trunk"


def test_embeddings_are_those_of_the_module():
    own = Plain().eval()
    torch.testing.assert_close(embedcam.wrap(own, "trunk", metric="euclidean")(IMAGES), own(IMAGES))
    torch.testing.assert_close(embedcam.wrap(own, "trunk")(IMAGES), nn.functional.normalize(own(IMAGES)))


def test_wrong_outputs_are_named():
    with pytest.raises(NetworkError, match=r"returns a tuple; choose the part .* one of \[0, 1\]"):
        embedcam.wrap(WithLogits(), "trunk")(IMAGES)
    with pytest.raises(NetworkError, match="has no output 5"):
        embedcam.wrap(WithLogits(), "trunk", output=5)(IMAGES)
    with pytest.raises(NetworkError, match=r"must return embeddings \(B, D\), got \(2, 8, 12, 12\)"):
        embedcam.wrap(Plain().trunk, "2")(IMAGES)


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(LayerError, match="no layer 'trunc'; did you mean trunk"):
        embedcam.wrap(Plain(), "trunc")


def test_a_layer_that_runs_twice_is_refused():
    class Siamese(Plain):
        def forward(self, x):
            return super().forward(x) + super().forward(x.flip(3))

    with pytest.raises(LayerError, match="'trunk' runs twice"):
        embedcam.wrap(Siamese(), "trunk", preprocess=preprocess()).activations(IMAGES)


@pytest.mark.parametrize("error", [AttributeError("'Broken' object has no attribute 'scale'"), ValueError("no scale")])
def test_an_error_in_the_forward_pass_is_not_reported_as_a_missing_property(error):
    class Broken(Plain):
        def forward(self, x):
            raise error

    net = embedcam.wrap(Broken(), "trunk", preprocess=preprocess())
    with pytest.raises(type(error), match="scale"):
        net(IMAGES)
    for read in (lambda: net.channels, lambda: net.map_size, lambda: net.dim, lambda: net.memory_format):
        with pytest.raises(type(error), match=r"scale"):
            read()
    with pytest.raises(AttributeError, match="no attribute 'chanels'"):
        net.chanels  # noqa: B018


@pytest.mark.parametrize("use", [embedcam.wrap, GradCAM])
@pytest.mark.parametrize("layer", [None, "trunk"])
def test_torchscript_is_refused_with_the_fix(use, layer):
    module = Plain().eval()
    for script in (torch.jit.script(module), torch.jit.trace(module, IMAGES)):
        with pytest.raises(NetworkError, match="TorchScript program, .* use the module that it was scripted or traced"):
            use(script, layer)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("use", [embedcam.wrap, GradCAM])
def test_quantised_layers_are_refused_by_name(use):
    module = torch.ao.quantization.quantize_dynamic(Plain().eval(), {nn.Linear})
    with pytest.raises(
        NetworkError, match="layer 'project' of Plain is quantised and has no gradient; use the network"
    ):
        use(module, "trunk")
