"""Networks of every number type and on every device, and under a surrounding autocast."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import embedcam
from embedcam.data import load
from embedcam.data.arrays import as_samples
from embedcam.explain.comparison import Against
from embedcam.explain.grad_weights import weigh
from embedcam.gradient import GradCAM, Similarity
from embedcam.nets import EmbeddingNet
from embedcam.nets.inference import embed
from embedcam.nets.receptive_field import geometry

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
REFERENCE = functional.normalize(torch.randn(8, generator=torch.Generator().manual_seed(1)), dim=0)


def cosine(one, other):
    return float(functional.cosine_similarity(torch.as_tensor(one).flatten(), torch.as_tensor(other).flatten(), dim=0))


class Own(nn.Module):
    """A module with a nonlinear head, which is wrapped."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(16 * 64, 8))

    def forward(self, x):
        return self.head(self.trunk(x))


@pytest.fixture(params=["embedding net", "wrapped"])
def float32_net(request):
    torch.manual_seed(0)
    if request.param == "wrapped":
        return embedcam.wrap(Own(), preprocess=embedcam.Preprocess((32, 32))).eval()
    return EmbeddingNet("tiny", 8, image_size=32).eval()


def weights_of(net, device):
    directions = torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(2))
    return weigh(net, net.layer, IMAGES.to(device), directions.to(device)).weights.cpu()


def test_a_network_of_any_number_type_is_built_explained_and_differentiated(float32_net, folder, device, dtype):
    net = copy.deepcopy(float32_net).to(device, dtype)
    db = embedcam.build_database(net, f"folder:{folder}", clusters=4, top_k=10, pairs=5)
    explanation = embedcam.Explainer(net, db)(IMAGES)
    seen = net.activations(IMAGES)
    if isinstance(net, EmbeddingNet):
        similarities = [Against(each)(IMAGES[:2], IMAGES[2:]).similarity for each in (net, float32_net)]
        np.testing.assert_allclose(*similarities, atol=1e-2)
    maps = GradCAM(net)(IMAGES, Similarity(REFERENCE.to(device))).heatmaps

    assert seen.maps.dtype == seen.embeddings.dtype == torch.float32
    assert db.centroids.dtype == db.weights_mean.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(explanation.embeddings, axis=1), 1, atol=1e-6)
    assert cosine(explanation.embeddings, float32_net(IMAGES).detach()) > 0.999
    assert cosine(weights_of(net, device), weights_of(float32_net, "cpu")) > 0.99
    assert cosine(maps, GradCAM(float32_net)(IMAGES, Similarity(REFERENCE)).heatmaps) > 0.99


def test_a_surrounding_autocast_is_allowed(float32_net, folder, device):
    net = copy.deepcopy(float32_net).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        db = embedcam.build_database(net, f"folder:{folder}", clusters=4, top_k=10, pairs=5)
        maps = GradCAM(net)(IMAGES, Similarity(REFERENCE.to(device))).heatmaps
        weights = weights_of(net, device)
        explanation = embedcam.Explainer(net, db)(IMAGES)
        if isinstance(net, EmbeddingNet):
            Against(net)(IMAGES[:2], IMAGES[2:])

    assert np.isfinite(db.weights_mean).all()
    assert maps.dtype == explanation.heatmaps.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(explanation.embeddings, axis=1), 1, atol=1e-6)
    assert cosine(weights, weights_of(float32_net, "cpu")) > 0.99


def test_pooled_vectors_are_recognised_in_every_number_type(net, folder, device, dtype):
    samples = load(f"folder:{folder}", "test")
    expected = embed(net, samples).pooled
    pooled = embed(net.to(device, dtype), samples).pooled
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled, expected, rtol=0.1, atol=0.02)


def test_a_head_that_takes_the_maximum_sees_more_than_means(net):
    class Maximum(nn.Module):
        def forward(self, maps):
            return maps.amax(dim=(2, 3), keepdim=True)

    net.backbone.pool = Maximum()
    black = [(torch.zeros(3, 32, 32), 0)] * 4  # whose mean and maximum are equal
    assert embed(net, as_samples(black)).pooled is None


def test_the_geometry_is_the_same_for_every_number_type(net, device, dtype):
    expected = geometry(net.body, net.layer, (32, 32))
    assert geometry(net.to(device, dtype).body, net.layer, (32, 32)) == expected
