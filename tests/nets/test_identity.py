"""The same network in another container is the same; another one is not."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

import embedcam
from embedcam.database import NetworkRecord
from embedcam.errors import DatabaseError
from embedcam.nets import identity

PREPROCESS = embedcam.Preprocess((96, 96))


def module():
    torch.manual_seed(0)
    return resnet18(num_classes=8).eval()


def wrap(module, layer="layer4"):
    return embedcam.wrap(module, layer, preprocess=PREPROCESS)


class Renamed(nn.Module):
    """As a Lightning module: the network under a name, and parameters of the training beside it."""

    def __init__(self, network):
        super().__init__()
        self.anything, self.criterion = network, nn.Linear(3, 3)

    def forward(self, images):
        return self.anything(images)


def with_buffer(network):
    network.register_buffer("unused", torch.ones(3))
    return network


@pytest.fixture(scope="module")
def record():
    return NetworkRecord.of(wrap(module()))


@pytest.mark.parametrize(
    "contain",
    [torch.compile, nn.DataParallel, Renamed, with_buffer, nn.Module.double, lambda net: Renamed(nn.DataParallel(net))],
)
def test_a_container_makes_no_difference(record, contain):
    net = wrap(contain(module()).eval())
    assert net.sha256() == record.sha256
    record.require_same(net)


@pytest.mark.parametrize("number_type", ["float16", "bfloat16"])
def test_a_copy_in_half_precision_is_the_same_network_in_both_directions(record, number_type):
    half = wrap(module().to(getattr(torch, number_type)))
    assert half.sha256() != record.sha256
    record.require_same(half)
    NetworkRecord.of(half).require_same(wrap(module()))
    with torch.no_grad():
        half.module.layer1[0].conv1.weight[0, 0, 0, 0] *= 1.25
    with pytest.raises(DatabaseError, match=f"sha256 as {number_type}"):
        record.require_same(half)


@pytest.mark.parametrize("name", ["layer1.0.conv1.weight", "bn1.running_var", "fc.bias"])
def test_another_value_makes_another_network(record, name):
    other = module()
    with torch.no_grad():
        other.state_dict()[name].flatten()[0].add_(1e-3)
    with pytest.raises(DatabaseError, match="made for another network: sha256"):
        record.require_same(wrap(other))


def test_what_the_embedding_does_not_depend_on_is_left_out():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.classify = module(), nn.Linear(8, 3)

        def forward(self, images):
            embedding = self.body(images)
            return {"embedding": embedding, "logits": self.classify(embedding)}

    net = embedcam.wrap(TwoHeads(), "body.layer4", output="embedding", preprocess=PREPROCESS)
    before = net.sha256()
    assert before == wrap(module()).sha256()
    nn.init.zeros_(net.module.classify.weight)
    assert net.sha256() == before


def test_views_and_work_in_place_carry_what_they_hold():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.unused = (nn.Parameter(torch.ones(3)) for _ in range(4))

        def forward(self, images):
            result = torch.zeros(1, 3)
            result[:, :2].add_(self.a[:2])
            result.view(3).mul_(self.b)
            torch.add(result, self.c, out=result)
            _ = self.unused * 2
            return result

    net = InPlace()
    assert identity.used(net, lambda: net(None)) == {"a", "b", "c"}


def test_parameters_that_share_one_memory_are_told_by_their_place_in_it():
    flat = torch.arange(6.0)
    net = nn.Module()
    net.a, net.b = nn.Parameter(flat[:3]), nn.Parameter(flat[3:])
    assert identity.used(net, lambda: net.b * 2) == {"b"}


def test_an_explainer_finds_layers_in_another_container_and_check_skips_the_comparison(folder):
    db = embedcam.build_database(wrap(module()), f"folder:{folder}", clusters=2, top_k=4)
    images = torch.rand(2, 3, 96, 96)
    expected = embedcam.Explainer(wrap(module()), db)(images)
    held = embedcam.Explainer(embedcam.wrap(Renamed(module()).eval(), preprocess=PREPROCESS), db)(images)
    assert (abs(held.heatmaps - expected.heatmaps) < 1e-4).all()
    tuned = copy.deepcopy(module())
    nn.init.ones_(tuned.fc.bias)
    with pytest.raises(DatabaseError, match=r"check=False \(--no-check\)"):
        embedcam.Explainer(wrap(tuned), db)
    embedcam.Explainer(wrap(tuned), db, check=False)(images)
    with pytest.raises(DatabaseError, match="dim 8 recorded, 9 in the network"):
        embedcam.Explainer(wrap(resnet18(num_classes=9).eval()), db, check=False)
