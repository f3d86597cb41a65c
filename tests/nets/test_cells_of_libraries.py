"""Cell embeddings of networks of other libraries, small and with random weights, add up to the embedding."""

import pytest
import torch
from torchvision.models import VisionTransformer

import embedcam


def assert_adds_up(module, layer, size=64, **options):
    net = embedcam.wrap(module.eval(), layer, preprocess=embedcam.Preprocess((size, size)), **options)
    with torch.inference_mode():
        seen = net.activations(torch.randn(2, 3, size, size))
        cells = net.cells(seen)
    error = (cells.embeddings.mean(dim=(2, 3)) + cells.rest - seen.embeddings).abs().max()
    assert error < 1e-5
    assert cells.embeddings.abs().max() > 0


def test_torchvision_vision_transformer():
    module = VisionTransformer(64, 16, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128)
    module.heads = torch.nn.Identity()
    assert_adds_up(module, "encoder.layers.encoder_layer_1.ln_1")


@pytest.mark.parametrize(
    ("name", "options", "layer"),
    [
        ("vit_tiny_patch16_224", {"depth": 2, "img_size": 64, "init_values": 0.1}, "blocks.1.norm1"),
        ("vit_tiny_patch16_224", {"depth": 2, "img_size": 64, "global_pool": "avg"}, "norm"),
        ("vit_tiny_patch16_224", {"depth": 2, "img_size": 64, "global_pool": "map", "class_token": False}, "norm"),
        ("deit3_small_patch16_224", {"depth": 2, "img_size": 64, "qk_norm": True}, "blocks.1.norm1"),
        ("cait_xxs24_224", {"depth": 2, "img_size": 64}, "blocks_token_only.1.norm1"),
        ("resnet50_clip", {"img_size": 64}, "stages.3"),
        ("convnextv2_atto", {}, "stages.3"),
        ("resnet10t", {}, "layer4"),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "img_size": 64, "window_size": 2}, "norm"),
    ],
)
def test_timm(name, options, layer):
    timm = pytest.importorskip("timm")
    assert_adds_up(timm.create_model(name, num_classes=0, **options), layer)


SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64, "patch_size": 16}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("name", "options", "layer", "output"),
    [
        ("ViT", {}, "layernorm_before", lambda output: output.last_hidden_state[:, 0]),
        ("Dinov2", {}, "norm1", "pooler_output"),
        ("CLIPVision", {"intermediate_size": 64}, "layer_norm1", "pooler_output"),
        ("SiglipVision", {"intermediate_size": 64}, "post_layernorm", "pooler_output"),
    ],
)
def test_hugging_face(name, options, layer, output, attention):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(**SMALL, **options, attn_implementation=attention)
    module = getattr(transformers, f"{name}Model")(config)
    layer = [each for each, _ in module.named_modules() if each.endswith(layer)][-1]
    assert_adds_up(module, layer, output=output)


@pytest.mark.parametrize(
    ("options", "layer"),
    [
        ({"layers": 2, "width": 64, "head_width": 16, "patch_size": 16}, "transformer.resblocks.1.ln_1"),
        ({"layers": [1, 1, 1, 1], "width": 16, "head_width": 8}, "layer4"),
    ],
)
def test_open_clip(options, layer):
    model = pytest.importorskip("open_clip.model")
    config = model.CLIPVisionCfg(image_size=64, **options)
    assert_adds_up(model._build_vision_tower(32, config), layer)
