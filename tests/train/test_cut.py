import pytest
import torch

from embedcam.errors import LayerError
from embedcam.nets import backbones
from embedcam.train.cut import cut


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("tiny", "features.8"),
        ("mobilenet_v2", "features.13"),
        ("resnet18", "layer2"),
        ("densenet121", "features.transition2"),
    ],
)
def test_the_two_parts_do_what_the_whole_does_and_share_its_parameters(name, layer):
    torch.manual_seed(0)
    backbone = backbones.create(name).eval()
    first, second = cut(backbone, layer)
    images = torch.rand(2, 3, 64, 64)

    with torch.no_grad():
        assert torch.equal(second(first(images)), backbone(images))
        whole = {id(parameter) for parameter in backbone.parameters()}
        before, after = ({id(p) for p in part.parameters()} for part in (first, second))
        assert before | after == whole
        assert not before & after
        next(iter(second.parameters())).add_(1)
        assert torch.equal(second(first(images)), backbone(images))


def test_cutting_leaves_the_mode_alone():
    backbone = backbones.create("tiny").train()
    backbone.features[1].eval()
    before = [module.training for module in backbone.modules()]
    cut(backbone, "features.2")
    assert [module.training for module in backbone.modules()] == before


def test_a_network_that_is_no_chain_at_the_layer_is_refused():
    with pytest.raises(LayerError, match=r"cannot train from 'layer2.0.conv1' on: a later layer also depends"):
        cut(backbones.create("resnet18"), "layer2.0.conv1")


def test_an_unknown_layer_is_named():
    with pytest.raises(LayerError, match="no layer 'features.99'"):
        cut(backbones.create("tiny"), "features.99")
