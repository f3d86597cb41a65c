import pytest
import torch
from torch import nn
from torchvision import models

from embedcam.errors import LayerError
from embedcam.nets.choice import suggest, suggest_finer


def tiny():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3, stride=2))
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))


@pytest.mark.parametrize(
    ("network", "layer"),
    [
        ("resnet18", "layer4"),
        ("mobilenet_v2", "features"),
        ("squeezenet1_1", "classifier.2"),
        ("alexnet", "features"),
        ("densenet121", "features"),
    ],
)
def test_suggests_the_last_spatial_layer(network, layer):
    model = models.get_model(network, weights=None, num_classes=3)
    assert suggest(model, (96, 96)) == layer


def test_suggests_no_layer_whose_cells_the_result_ignores():
    # After the last attention only the class token counts, so the patch tokens there have no gradient.
    torch.manual_seed(0)
    model = models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3)
    nn.init.normal_(model.heads.head.weight)
    assert suggest(model, (32, 32)) == "encoder.layers.encoder_layer_1.ln_1"


def test_suggesting_fails_without_a_spatial_layer():
    with pytest.raises(LayerError, match="no layer of Sequential has a spatial output"):
        suggest(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2)), (8, 8))


def test_suggesting_leaves_no_hook_and_no_gradient():
    model = tiny()
    model.train()
    suggest(model, (16, 16))
    assert model.training and all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("network", "layer", "finer"),
    [
        ("mobilenet_v2", "features.18", "features.14.conv.0"),  # the last block's expansion, before its stride
        ("resnet50", "layer4", "layer3"),  # layer4.0.bn1 is as fine, but of both signs
        ("vgg11", "features", "features.19"),  # only the pooling is left out
        ("densenet121", "features", "features.transition3.relu"),
        ("convnext_tiny", "features", "features.6.0"),  # no layer there is free of negative values
        ("swin_t", "features", "features.5"),  # channels last
        ("resnet18", "layer2", "layer1"),
    ],
)
def test_suggests_the_layer_before_the_last_stride(network, layer, finer):
    assert suggest_finer(models.get_model(network, weights=None), layer, (64, 64)) == finer


def test_suggests_the_output_of_the_block_before_the_last_stride():
    for network, layer, finer in (("mobilenet_v2", "features", "features.13"), ("resnet18", "layer4", "layer3")):
        model = models.get_model(network, weights=None)
        assert suggest_finer(model, layer, (64, 64), outermost=True) == finer


def test_transformers_have_no_finer_layer():
    vit = models.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)
    assert suggest_finer(vit, "encoder", (32, 32)) is None


def test_a_layer_that_the_result_ignores_is_no_finer_layer():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.spare = nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU()
            self.last = nn.Conv2d(4, 4, 3, 2, 1)

        def forward(self, x):
            x = self.first(x)
            self.spare(x)
            return self.last(x)

    assert suggest_finer(Spare(), "last", (16, 16)) == "first"
    with pytest.raises(LayerError, match="has no layer 'middle'"):
        suggest_finer(Spare(), "middle", (16, 16))


def test_layers_of_a_gate_are_left_out():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.attend = nn.Conv2d(3, 4, 3, 2, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 1, 1))

        def forward(self, x):
            x = self.trunk(x)
            return (x * self.attend(x).sigmoid()).mean(dim=(2, 3))

    assert suggest(Gated(), (32, 32)) == "trunk"


def test_where_gradients_are_off_the_layer_is_the_same():
    model = tiny()
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert suggest(model, (16, 16)) == "0"


def test_a_module_that_adapts_to_small_images_is_left_as_it_was():
    class Adapting(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.window = nn.Conv2d(3, 4, 8, 8), 4

        def forward(self, x):
            x = self.trunk(x)
            self.window = min(self.window, x.shape[2])
            return x.flatten(2).mean(dim=2)

    model = Adapting()
    assert suggest(model, (32, 32)) == "trunk"
    assert model.window == 4
