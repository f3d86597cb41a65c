"""A few networks of other libraries, small and with random weights: the layer and its grid are right."""

import pytest
import torch

import embedcam


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def found(module, size, **options):
    net = embedcam.wrap(module.eval(), preprocess=embedcam.Preprocess(size), **options)
    return net.layer, net.map_size, getattr(net.reading(), "prefix", 0)


@pytest.mark.parametrize(
    ("name", "options", "size", "expected"),
    [
        ("vit_tiny_patch16_224", {"img_size": 96, "depth": 2}, (96, 96), ("blocks.1.norm1", (6, 6), 1)),
        ("deit_tiny_distilled_patch16_224", {"img_size": 96, "depth": 2}, (96, 96), ("blocks.1.norm1", (6, 6), 2)),
        (
            "vit_small_patch14_reg4_dinov2",
            {"img_size": (112, 56), "depth": 2, "embed_dim": 48, "num_heads": 2},
            (112, 56),
            ("blocks.1.norm1", (8, 4), 5),
        ),
        (
            "vit_base_patch16_siglip_224",
            {"img_size": 96, "depth": 2, "embed_dim": 48, "num_heads": 2},
            (96, 96),
            ("norm", (6, 6), 0),
        ),
        ("test_convnext", {}, (160, 96), ("norm_pre", (5, 3), 0)),
    ],
)
def test_timm(name, options, size, expected):
    timm = pytest.importorskip("timm")
    assert found(timm.create_model(name, pretrained=False, num_classes=0, **options), size) == expected


def test_transformers():
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.Dinov2WithRegistersConfig(image_size=56, patch_size=14, num_register_tokens=4, **small)
    layer, grid, prefix = found(
        transformers.Dinov2WithRegistersModel(config), (112, 56), output=lambda output: output.pooler_output
    )
    assert layer.endswith(".1.norm1") and (grid, prefix) == ((8, 4), 5)
    whole = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=small | {"vocab_size": 99}, vision_config=small | {"image_size": 64})
    )
    with pytest.raises(embedcam.errors.NetworkError, match="takes input_ids, not images alone; wrap"):
        found(whole, (64, 64))
