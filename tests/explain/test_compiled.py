"""Needs a C++ compiler, as `torch.compile` does on the processor."""

import functools
import shutil

import numpy as np
import pytest
import torch

import embedcam
from embedcam.errors import DatabaseError, NetworkError
from embedcam.explain import CompiledExplainer

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


@pytest.fixture(scope="module")
def compiled(spread):
    return CompiledExplainer(*spread)


def assert_same(ours, expected):
    np.testing.assert_allclose(ours.heatmaps, expected.heatmaps, atol=3e-5)
    np.testing.assert_allclose(ours.embeddings, expected.embeddings, atol=1e-6)
    np.testing.assert_allclose(ours.typicality, expected.typicality, atol=1e-3)
    np.testing.assert_array_equal(ours.clusters, expected.clusters)
    np.testing.assert_array_equal(ours.neighbors, expected.neighbors)
    assert ours.notes == expected.notes


def test_the_compiled_graph_explains_as_the_explainer_does(spread, compiled):
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    assert_same(compiled(images), embedcam.Explainer(*spread)(images))


def test_one_graph_explains_batches_of_any_length(fused, monkeypatch):
    # Without the C++ compiler, which takes half a minute for two layers.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    compiled = CompiledExplainer(*fused)
    for count in (1, 5, 2):
        images = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(count))
        assert_same(compiled(images), embedcam.Explainer(*fused)(images))
    assert len(compiled._programs) == 1


def test_an_image_of_nan_is_noted_and_the_others_are_explained(compiled):
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = compiled(images)
    images[0] = np.nan
    found = compiled(images)
    assert not found.heatmaps[0].any()
    assert "not finite" in found.notes[0][-1]
    np.testing.assert_allclose(found.heatmaps[1], expected.heatmaps[1], atol=1e-6)


def test_exemplars_cannot_be_compiled(fused):
    with pytest.raises(DatabaseError, match="searches all training images, which no graph holds"):
        CompiledExplainer(*fused, transfer="nearest")(torch.rand(1, 3, 64, 64))


def test_a_network_that_cannot_be_followed_is_named(fused, monkeypatch):
    explainer = CompiledExplainer(*fused)
    embed = type(explainer.net).embed

    def decide(self, images):
        return embed(self, images if images.sum().item() > 0 else -images)

    monkeypatch.setattr(type(explainer.net), "embed", decide)
    with pytest.raises(NetworkError, match="cannot be compiled: .* explain without --compile"):
        explainer(torch.rand(1, 3, 64, 64))
