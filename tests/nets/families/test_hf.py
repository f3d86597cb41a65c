"""Networks of transformers, made from configurations with random weights."""

import pytest
import torch

import embedcam
from embedcam.errors import NetworkError

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = {**SMALL, "image_size": 32, "patch_size": 8}
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path):
    def save(model, processor=None):
        model.eval().save_pretrained(tmp_path)
        if processor is not None:
            processor.save_pretrained(tmp_path)
        return f"hf:{tmp_path}"

    return save


def clip():
    torch.manual_seed(0)
    text = {**SMALL, "vocab_size": 50, "max_position_embeddings": 16}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=VIT, projection_dim=24))


def processor(kind, side=32, **options):
    return getattr(transformers, kind)(**options, size={"height": side, "width": side})


def test_clip_gives_its_image_features_and_keeps_no_text_tower(folder):
    model = clip()
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    net = embedcam.load_network(folder(model, transformers.CLIPImageProcessor(**crop)), metric="euclidean")
    with torch.no_grad():
        torch.testing.assert_close(net(IMAGES), model.get_image_features(pixel_values=IMAGES).pooler_output)
    assert net.preprocess.crop_pct == 1.0
    assert not any("text" in name for name in net.state_dict())
    assert net.source.library == f"transformers {transformers.__version__}"


def test_siglip_gives_its_image_features(folder):
    torch.manual_seed(0)
    text = {**SMALL, "vocab_size": 50, "max_position_embeddings": 16}
    model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=VIT))
    net = embedcam.load_network(folder(model, processor("SiglipImageProcessor")), metric="euclidean")
    with torch.no_grad():
        torch.testing.assert_close(net(IMAGES), model.get_image_features(pixel_values=IMAGES).pooler_output)


def test_a_transformer_gives_its_pooled_output(folder):
    torch.manual_seed(0)
    model = transformers.Dinov2Model(transformers.Dinov2Config(**VIT, mlp_ratio=2))
    net = embedcam.load_network(folder(model, processor("BitImageProcessor", do_center_crop=False)), metric="euclidean")
    with torch.no_grad():
        torch.testing.assert_close(net(IMAGES), model(pixel_values=IMAGES).pooler_output)


def test_a_pooling_layer_that_the_weights_lack_is_left_out_for_the_class_token(folder):
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**VIT, num_labels=3))
    net = embedcam.load_network(folder(model, processor("ViTImageProcessor")), metric="euclidean")
    with torch.no_grad():
        torch.testing.assert_close(net(IMAGES), model.vit(pixel_values=IMAGES).last_hidden_state[:, 0])


def test_convolutional_networks_give_their_pooled_maps(folder):
    torch.manual_seed(0)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    net = embedcam.load_network(folder(transformers.ResNetModel(config)), input_size=(64, 64), metric="euclidean")
    assert net.dim == 16
    assert net.map_size[0] > 1


def test_position_embeddings_are_interpolated_to_another_size(folder):
    net = embedcam.load_network(folder(clip()), input_size=(48, 32), layer="model.vision_model.encoder.layers.1")
    assert net.map_size == (6, 4)


def test_a_state_dict_is_loaded_into_the_network_that_the_folder_configures(folder, tmp_path):
    model = clip()
    spec = folder(model)
    with torch.no_grad():
        model.visual_projection.weight.mul_(-1)
    torch.save({f"module.{name}": value for name, value in model.state_dict().items()}, tmp_path / "tuned.pth")
    nets = [embedcam.load_network(spec, weights=weights) for weights in (None, tmp_path / "tuned.pth")]
    torch.testing.assert_close(nets[0](IMAGES), -nets[1](IMAGES))


def test_pickled_weights_are_refused_with_the_way_out(folder, tmp_path):
    spec = folder(clip())
    (tmp_path / "model.safetensors").unlink()
    torch.save(clip().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(NetworkError, match="cannot load hf:.*pickled .bin weights are not read, .* save_pretrained"):
        embedcam.load_network(spec)


def test_networks_that_take_no_images_are_refused(folder):
    config = transformers.BertConfig(**SMALL, vocab_size=50, max_position_embeddings=16)
    with pytest.raises(NetworkError, match="BertModel takes no images"):
        embedcam.load_network(folder(transformers.BertModel(config)))
