"""What a GPU computes is what the CPU computes."""

import copy

import numpy as np
import pytest
import torch

import embedcam
from embedcam.explain.comparison import Against
from embedcam.nets.inference import embed
from embedcam.onnx.export import export

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
# Convolutions on a GPU round their factors to 10 bits (TF32).
ROUNDING = 2e-2


@pytest.fixture
def pair(spread, device):
    net, db = spread
    return copy.deepcopy(net).to(device), db


@pytest.mark.parametrize("transfer", [None, "cluster", "neighbors"])
def test_explanations_are_those_of_the_cpu(spread, pair, transfer):
    expected = embedcam.Explainer(*spread, transfer=transfer)(IMAGES)
    explanation = embedcam.Explainer(*pair, transfer=transfer)(IMAGES)
    np.testing.assert_allclose(explanation.heatmaps, expected.heatmaps, atol=ROUNDING)
    np.testing.assert_allclose(explanation.embeddings, expected.embeddings, atol=ROUNDING)
    np.testing.assert_array_equal(explanation.clusters, expected.clusters)


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_low_precision_gives_nearly_the_same_heat_maps(spread, pair, autocast):
    expected, explanation = (
        embedcam.Explainer(*given, autocast=precision)(IMAGES)
        for given, precision in ((spread, None), (pair, autocast))
    )
    np.testing.assert_allclose(explanation.embeddings, expected.embeddings, atol=5e-2)
    assert np.corrcoef(explanation.heatmaps.ravel(), expected.heatmaps.ravel())[0, 1] > 0.95


def test_a_database_is_that_of_the_cpu(spread, pair, folder):
    net, expected = pair[0], spread[1]
    db = embedcam.build_database(net, f"folder:{folder}", clusters=4, top_k=12, pairs=5)
    np.testing.assert_allclose(db.centroids, expected.centroids, atol=ROUNDING)
    np.testing.assert_array_equal(db.counts, expected.counts)
    strongest = np.abs(expected.weights_mean).max()
    np.testing.assert_allclose(db.weights_mean, expected.weights_mean, atol=ROUNDING * strongest)


def test_embedding_a_data_set_copies_every_batch(spread, pair, folder):
    samples = embedcam.data.load(f"folder:{folder}")
    expected, embedded = embed(spread[0], samples), embed(pair[0], samples, batch_size=4)
    np.testing.assert_allclose(embedded.embeddings, expected.embeddings, atol=ROUNDING)
    np.testing.assert_allclose(embedded.pooled, expected.pooled, atol=ROUNDING * expected.pooled.max())


def test_comparisons_are_those_of_the_cpu(spread, pair):
    expected, comparison = (Against(net)(IMAGES[:2], IMAGES[2:]) for net in (spread[0], pair[0]))
    np.testing.assert_allclose(comparison.similarity, expected.similarity, atol=ROUNDING)
    np.testing.assert_allclose(comparison.shared.images.heatmaps, expected.shared.images.heatmaps, atol=ROUNDING)


def test_an_explainer_is_exported_from_its_device(pair, tmp_path):
    report = export(embedcam.Explainer(*pair), tmp_path / "explainer.onnx")
    assert report.path.is_file()
