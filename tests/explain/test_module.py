"""The module that graphs are made of against the explainer that wraps it: the same operators, so nearly the same bits."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import embedcam
from embedcam.explain.explanation import Outputs
from embedcam.nets import DenseNet

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).numpy()


def graph(pair, **options):
    """What a graph computes, run by torch itself: exporting every choice as a file takes seconds each."""
    explainer = embedcam.Explainer(*pair, **options)

    def explain(images, size=None):
        batch = torch.as_tensor(images).contiguous(memory_format=torch.channels_last)  # as the explainer has it
        with torch.no_grad():
            module = explainer.module.fixed(tuple(batch.shape[2:]) if size is None else None)
            return Outputs(*(out.numpy() for out in module(batch)))

    return explainer, explain


def assert_same(explanation, outputs):
    names = ("heatmaps", "raw", "embeddings", "distances", "typicality", "anomaly")
    values = (outputs.heatmap, outputs.raw, outputs.embedding, outputs.distance, outputs.typicality, outputs.anomaly)
    for name, theirs in zip(names, values, strict=True):
        np.testing.assert_allclose(theirs, getattr(explanation, name), rtol=1e-6, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(outputs.cluster, explanation.clusters)


@pytest.mark.parametrize(
    "options",
    [{}, {"preset": "paper"}, {"placement": "stretch"}]
    + [{"transfer": name} for name in ("cluster", "contrast", "soft", "soft-contrast")],
    ids=str,
)
@pytest.mark.parametrize("spread", ["cosine", "euclidean"], indirect=True)
@pytest.mark.parametrize("size", [None, "any"])
def test_the_graph_computes_what_the_explainer_does(spread, options, size):
    explainer, explain = graph(spread, **options)
    assert_same(explainer(IMAGES), explain(IMAGES, size))


@pytest.mark.parametrize("options", [{}, {"placement": "stretch"}, {"transfer": "cluster", "fused": True}], ids=str)
@pytest.mark.parametrize("size", [None, "any"])
def test_two_layers_are_fused_at_any_size(fused, options, size):
    explainer, explain = graph(fused, **options)
    for shape in ((64, 64), (160, 96)):  # 160 x 96 pixels are 10 x 6 cells of the finer layer
        images = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(2)).numpy()
        assert_same(explainer(images), explain(images, size))


def test_a_cluster_of_one_image_holds_that_image_typical(spread):
    net, db = spread
    centroids = db.centroids.copy()
    with torch.no_grad():
        centroids[2] = net(torch.as_tensor(IMAGES[:1]))[0]
    explainer, explain = graph(
        (net, replace(db, centroids=centroids, distance_quantiles=np.zeros_like(db.distance_quantiles)))
    )
    assert explain(IMAGES).cluster[0] == 2
    assert explain(IMAGES).typicality[0] == 1
    assert_same(explainer(IMAGES), explain(IMAGES))


@torch.inference_mode()
def test_denser_cells_lie_between_the_old_ones(spread):
    net, database = spread
    plain, dense = (
        embedcam.Explainer(each, database, transfer="cluster").module.fixed(None, at_image_size=False)(
            torch.as_tensor(IMAGES)
        )
        for each in (net, DenseNet(net))
    )
    assert torch.allclose(dense.raw[:, ::2, ::2], plain.raw, atol=1e-5)
    assert torch.equal(dense.embedding, plain.embedding)
