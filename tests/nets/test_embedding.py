import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from embedcam.errors import LayerError, NetworkError
from embedcam.nets import EmbeddingNet, backbones

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("vgg11_bn", "features"),
        ("resnet18", "layer4"),
        ("densenet121", "features"),
        ("squeezenet1_1", "features"),
        ("mobilenet_v2", "features"),
        ("efficientnet_b0", "features"),
        ("shufflenet_v2_x0_5", "conv5"),
        ("regnet_x_400mf", "trunk_output"),
        ("swin_t", "permute"),
        ("googlenet", "inception5b"),
        ("tiny", "features"),
    ],
)
def test_any_backbone_embeds_and_shows_its_last_spatial_layer(name, layer):
    net = EmbeddingNet(name, 7, image_size=64).eval()
    seen = net.activations(IMAGES)

    assert net.layer == layer
    assert seen.embeddings.shape == (2, 7)
    assert (net.dim, net.channels, net.map_size) == (7, seen.maps.shape[1], seen.maps.shape[2:])
    torch.testing.assert_close(seen.embeddings.norm(dim=1), torch.ones(2))
    # The maps are those of the embedding: running the rest of the backbone by hand gives the same vector.
    if name in ("vgg11_bn", "resnet18", "mobilenet_v2", "tiny"):
        torch.testing.assert_close(net.head_embed(seen.maps.mean(dim=(2, 3))), seen.embeddings)


def test_vision_transformers_show_the_last_tokens_that_matter():
    net = EmbeddingNet("vit_b_32", 7, image_size=224).eval()
    assert net.layer == "encoder.layers.encoder_layer_11.ln_1"
    assert net.map_size == (7, 7)


def test_a_hidden_layer_and_the_euclidean_metric():
    net = EmbeddingNet("tiny", 5, hidden=9, metric="euclidean", image_size=32).eval()
    vector = net.backbone(IMAGES)
    by_hand = net.head[2](torch.relu(net.head[0](vector)))

    torch.testing.assert_close(net(IMAGES), by_hand)
    assert net.head[0].out_features == 9


def test_saving_and_loading_keeps_weights_layer_and_preprocessing(tmp_path):
    torch.manual_seed(3)
    net = EmbeddingNet("tiny", 5, hidden=9, metric="euclidean", image_size=40, layer="features.8").eval()
    net.save(tmp_path / "net.safetensors")
    again = EmbeddingNet.load(tmp_path / "net.safetensors")

    assert again.config() == net.config()
    assert again.preprocess == net.preprocess
    assert again.sha256() == net.sha256()
    assert not again.training
    assert torch.equal(again(IMAGES), net(IMAGES))


def test_saving_twice_gives_the_same_bytes(tmp_path):
    net = EmbeddingNet("tiny", 5, image_size=32)
    net.save(tmp_path / "a.safetensors")
    EmbeddingNet.load(tmp_path / "a.safetensors").save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_saved_network_is_taken_as_weights(tmp_path):
    net = EmbeddingNet("tiny", 5, image_size=32).eval()
    net.save(tmp_path / "net.safetensors")
    again = EmbeddingNet("tiny", 5, weights=tmp_path / "net.safetensors", image_size=32).eval()
    assert again.sha256() == net.sha256()

    with pytest.raises(NetworkError, match="holds a network with dim 5, not 6"):
        EmbeddingNet("tiny", 6, weights=tmp_path / "net.safetensors", image_size=32)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_of_torchvision_are_taken_without_their_classifier(tmp_path, suffix):
    torch.manual_seed(1)
    model = models.resnet18(num_classes=10).eval()
    path = tmp_path / f"resnet18.{suffix}"
    save_file(model.state_dict(), path) if suffix == "safetensors" else torch.save(model.state_dict(), path)

    net = EmbeddingNet("resnet18", 4, weights=path, image_size=64).eval()

    model.fc = torch.nn.Identity()
    assert torch.equal(net.backbone(IMAGES), model(IMAGES))


def test_weights_of_another_network_are_refused(tmp_path):
    save_file(models.resnet34().state_dict(), tmp_path / "r.safetensors")
    with pytest.raises(NetworkError, match=r"does not fit backbone 'resnet50'.*missing"):
        EmbeddingNet("resnet50", 4, weights=tmp_path / "r.safetensors")
    state = {k: v if k != "conv1.weight" else v[:, :1].clone() for k, v in models.resnet18().state_dict().items()}
    save_file(state, tmp_path / "grey.safetensors")
    with pytest.raises(NetworkError, match=r"'conv1.weight' has shape \(64, 1, 7, 7\), expected \(64, 3, 7, 7\)"):
        EmbeddingNet("resnet18", 4, weights=tmp_path / "grey.safetensors")


class Harm:
    def __reduce__(self):
        return (open, ("/tmp/embedcam-was-here", "w"))


def test_a_pickled_object_is_never_loaded(tmp_path):
    torch.save(Harm(), tmp_path / "harm.pth")
    with pytest.raises(NetworkError, match="cannot read weights"):
        EmbeddingNet("tiny", 4, weights=tmp_path / "harm.pth", image_size=32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no network file"),
        (b"", "not a readable safetensors file"),
        (b"\xff" * 64, "not a readable safetensors file"),
    ],
)
def test_damaged_network_files_are_refused(tmp_path, content, message):
    path = tmp_path / "net.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NetworkError, match=message):
        EmbeddingNet.load(path)


def test_a_plain_state_dict_is_not_a_network(tmp_path):
    save_file(models.resnet18().state_dict(), tmp_path / "r.safetensors")
    with pytest.raises(NetworkError, match="plain state dict"):
        EmbeddingNet.load(tmp_path / "r.safetensors")


def test_unknown_names_come_with_a_suggestion():
    with pytest.raises(NetworkError, match="did you mean .*resnet50"):
        EmbeddingNet("resnet_50")
    with pytest.raises(LayerError, match=r"no layer 'feature'; did you mean features"):
        EmbeddingNet("tiny", image_size=32).layer = "feature"
    with pytest.raises(NetworkError, match="no pretrained weights"):
        EmbeddingNet("tiny", weights="DEFAULT", image_size=32)
    with pytest.raises(NetworkError, match="unknown metric 'dot'"):
        EmbeddingNet("tiny", metric="dot", image_size=32)


def test_weights_that_cannot_be_downloaded_are_a_clear_error(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*_, **__):
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(NetworkError, match=r"cannot download the weights of resnet18: .*give --weights a file"):
        backbones.create("resnet18", "DEFAULT")


def test_sha256_changes_with_any_parameter_and_not_with_the_mode(net):
    before = net.sha256()
    net.train()
    assert net.sha256() == before
    with torch.no_grad():
        net.head.bias[0] += 1e-6
    assert net.sha256() != before


def test_the_maps_are_a_copy():
    net = EmbeddingNet("tiny", 5, image_size=32, layer="features.1").eval()  # an in-place ReLU would follow
    net.backbone.features[2] = torch.nn.ReLU(inplace=True)
    with torch.inference_mode():
        maps = net.activations(IMAGES).maps
    assert np.asarray(maps).min() < 0
