"""Networks by SPEC."""

import sys

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

import embedcam
from embedcam.errors import LayerError, NetworkError
from embedcam.nets import EmbeddingNet, WrappedNet
from embedcam.nets.weights import without_prefixes

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

USER_MODULE = """
from torch import nn
import embedcam

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.head = nn.Conv2d(3, 4, 3, 2), nn.Linear(4, 5)

    def forward(self, images):
        pooled = self.trunk(images).relu().mean(dim=(2, 3))
        return {"embedding": self.head(pooled), "pooled": pooled}

def plain():
    return Net()

def wrapped():
    return embedcam.wrap(Net(), "trunk", output="pooled", preprocess=embedcam.Preprocess((32, 48)))

def broken():
    raise KeyError("of the user")

text = lambda: "no network"
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "users_networks.py").write_text(USER_MODULE)
    monkeypatch.chdir(tmp_path)
    yield "python:users_networks:"
    sys.modules.pop("users_networks", None)


@pytest.fixture(scope="module")
def bird_classifier(tmp_path_factory):
    torch.manual_seed(0)
    model = models.resnet18(num_classes=7).eval()
    path = tmp_path_factory.mktemp("weights") / "birds.safetensors"
    save_file(model.state_dict(), path)
    return model, path


def test_a_file_is_a_network_of_embedcam(net, tmp_path):
    net.save(tmp_path / "net.safetensors")
    loaded = embedcam.load_network(tmp_path / "net.safetensors", layer="features.5")
    assert isinstance(loaded, EmbeddingNet)
    assert loaded.layer == "features.5"
    assert loaded.sha256() == net.sha256()
    with pytest.raises(
        NetworkError, match=r"weights, input_size cannot be chosen: .*net.safetensors has its own; leave them out"
    ):
        embedcam.load_network(tmp_path / "net.safetensors", weights="DEFAULT", input_size=(64, 64))


def test_a_torchvision_classifier_embeds_by_its_pooled_features(bird_classifier):
    model, path = bird_classifier
    net = embedcam.load_network("torchvision:resnet18", weights=path, metric="euclidean", input_size=(64, 96))
    model.fc = torch.nn.Identity()
    torch.testing.assert_close(net(IMAGES), model(IMAGES))
    assert (net.layer, net.dim, net.preprocess.input_size) == ("layer4", 512, (64, 96))
    assert not net.training


def test_preprocessing_is_that_of_torchvisions_weights(tmp_path):
    save_file(models.get_model("efficientnet_b1").state_dict(), tmp_path / "b1.safetensors")
    preprocess = embedcam.load_network("torchvision:efficientnet_b1", weights=tmp_path / "b1.safetensors").preprocess
    assert (preprocess.input_size, preprocess.interpolation) == ((240, 240), "bilinear")


def test_a_function_of_the_user_makes_a_module(user_module, tmp_path):
    net = embedcam.load_network(f"{user_module}plain", output="embedding", layer="trunk", input_size=(32, 32))
    assert isinstance(net, WrappedNet)
    assert (net.dim, net.channels, net.map_size, net.metric) == (5, 4, (15, 15), "cosine")
    save_file(net.module.state_dict(), tmp_path / "weights.safetensors")
    again = embedcam.load_network(f"{user_module}plain", weights=tmp_path / "weights.safetensors", output="embedding")
    assert again.sha256() == net.sha256()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "model._orig_mod.module."])
def test_prefixes_of_other_libraries_before_the_names_of_weights_are_stripped(user_module, tmp_path, prefix):
    net = embedcam.load_network(f"{user_module}plain", output="embedding")
    state = {prefix + name: value for name, value in net.module.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "checkpoint.pth")
    again = embedcam.load_network(f"{user_module}plain", weights=tmp_path / "checkpoint.pth", output="embedding")
    assert again.sha256() == net.sha256()


def test_prefixes_before_a_classifiers_weights_are_stripped(bird_classifier, tmp_path):
    model, path = bird_classifier
    save_file({f"module.{name}": value for name, value in model.state_dict().items()}, tmp_path / "w.safetensors")
    nets = [embedcam.load_network("torchvision:resnet18", weights=file) for file in (path, tmp_path / "w.safetensors")]
    assert nets[0].sha256() == nets[1].sha256()


def test_names_that_a_module_has_itself_are_no_prefix():
    module = torch.nn.ModuleDict({"model": torch.nn.Linear(1, 1)})
    assert without_prefixes(module.state_dict(), module).keys() == {"model.weight", "model.bias"}


def test_a_function_of_the_user_makes_a_wrapped_network(user_module):
    net = embedcam.load_network(f"{user_module}wrapped")
    assert (net.dim, net.preprocess.input_size) == (4, (32, 48))
    with pytest.raises(NetworkError, match="output cannot be chosen: users_networks:wrapped returns a wrapped network"):
        embedcam.load_network(f"{user_module}wrapped", output="embedding")
    with pytest.raises(LayerError, match="no layer 'trunc'"):
        embedcam.load_network(f"{user_module}wrapped", layer="trunc")


def test_errors_of_the_users_function_are_passed_on(user_module):
    with pytest.raises(KeyError, match="of the user"):
        embedcam.load_network(f"{user_module}broken")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.safetensors", "no network file nowhere.safetensors; .* or torchvision:NAME"),
        ("resnet18", "no network file resnet18; give the path of a .safetensors file, or"),
        ("torchvison:resnet18", "unknown network family 'torchvison'; did you mean 'torchvision'?"),
        ("torchvision:resnet19", "unknown backbone 'resnet19'; did you mean resnet18"),
        ("torchvision:", "is incomplete; write 'torchvision:NAME'"),
        ("torchvision", "is incomplete; write 'torchvision:NAME'"),
        ("python:nowhere:make", "cannot be imported: No module named 'nowhere'"),
        ("python:users_networks:make", "has no attribute 'make'; write python:package.module:function"),
        ("python:users_networks", "cannot be imported"),
        ("python:math:pi", "math:pi is float; name a function that returns a network"),
        ("python::make", "cannot be imported"),
        ("python:users_networks:text", "returns str; it must return a torch module or a wrapped network"),
    ],
)
@pytest.mark.usefixtures("user_module")
def test_what_cannot_be_loaded_is_one_clear_error(spec, message):
    with pytest.raises(NetworkError, match=message):
        embedcam.load_network(spec)


def test_weights_of_another_network_are_refused(user_module, bird_classifier):
    with pytest.raises(NetworkError, match="does not fit the module of users_networks:plain"):
        embedcam.load_network(f"{user_module}plain", weights=bird_classifier[1])
    with pytest.raises(NetworkError, match="does not fit backbone 'resnet50'"):
        embedcam.load_network("torchvision:resnet50", weights=bird_classifier[1])
