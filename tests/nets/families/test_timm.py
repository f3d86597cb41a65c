"""Networks of timm, with random weights."""

import pytest
import torch
from safetensors.torch import save_file

import embedcam
from embedcam.errors import NetworkError

timm = pytest.importorskip("timm")
IMAGES = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def saved(tmp_path):
    def save(name, prefix="", **options):
        torch.manual_seed(0)
        model = timm.create_model(name, **options).eval()
        path = tmp_path / f"{name}.safetensors"
        save_file({prefix + key: value.contiguous() for key, value in model.state_dict().items()}, path)
        return model, path

    return save


@pytest.mark.parametrize("prefix", ["", "module.", "state_dict.model.", "backbone."])
def test_a_classifiers_checkpoint_gives_the_features_before_its_classifier(saved, prefix):
    model, path = saved("resnet10t", prefix, num_classes=7)
    net = embedcam.load_network("timm:resnet10t", weights=path, metric="euclidean")
    with torch.no_grad():
        torch.testing.assert_close(net(IMAGES), model.forward_head(model.forward_features(IMAGES), pre_logits=True))
    assert (net.layer, net.metric) == ("layer4", "euclidean")
    assert net.source.library == f"timm {timm.__version__}"


def test_preprocessing_is_that_of_the_pretrained_cfg(saved):
    cfg = timm.get_pretrained_cfg("resnet10t")
    preprocess = embedcam.load_network("timm:resnet10t", weights=saved("resnet10t")[1]).preprocess
    assert preprocess.input_size == cfg.input_size[1:]
    assert (preprocess.crop_pct, preprocess.interpolation) == (cfg.crop_pct, cfg.interpolation)


def test_vision_transformers_take_other_input_sizes(saved):
    net = embedcam.load_network(
        "timm:test_vit", weights=saved("test_vit")[1], input_size=(96, 64), layer="blocks.1.norm1"
    )
    assert net.preprocess.input_size == (96, 64)
    assert net.map_size == (6, 4)


def test_wrap_takes_the_preprocessing_of_a_timm_model_and_its_own_size():
    model = timm.create_model("test_vit", img_size=96, num_classes=0)
    preprocess = embedcam.wrap(model, "blocks.1.norm1").preprocess
    assert preprocess.input_size == (96, 96)
    assert preprocess.mean == tuple(model.pretrained_cfg["mean"])


def test_what_cannot_be_loaded_is_one_line(saved):
    with pytest.raises(NetworkError, match="cannot load timm:resnet1o.*Unknown model.*give --weights FILE"):
        embedcam.load_network("timm:resnet1o")
    with pytest.raises(NetworkError, match="resnet10t.safetensors does not fit timm:test_vit"):
        embedcam.load_network("timm:test_vit", weights=saved("resnet10t")[1])


@pytest.mark.parametrize("name", ["resnet10t", "test_vit"])
def test_a_backbone_is_trained_from_weights_saved_and_loaded_again(saved, name, tmp_path):
    model, path = saved(name, num_classes=7)
    torch.manual_seed(1)
    net = embedcam.EmbeddingNet(f"timm:{name}", 8, weights=path, image_size=96).eval()
    torch.testing.assert_close(
        net.backbone.state_dict().popitem()[1], model.state_dict()[[*net.backbone.state_dict()][-1]]
    )
    net(IMAGES).sum().backward()
    assert any(parameter.grad is not None for parameter in net.backbone.parameters())
    net.save(tmp_path / "net.safetensors")
    again = embedcam.EmbeddingNet.load(tmp_path / "net.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(again(IMAGES), net(IMAGES))
    assert again.layer == net.layer
