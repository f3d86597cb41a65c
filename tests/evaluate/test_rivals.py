"""Rivals and controls against the same maps put together otherwise."""

import numpy as np
import pytest
import torch

from embedcam.data import load
from embedcam.evaluate import rivals
from embedcam.evaluate.compare import Gallery
from embedcam.explain import Explainer
from embedcam.explain.explanation import Explanation
from embedcam.explain.maps import fuse, place
from embedcam.gradient import GradCAM, Similarity
from embedcam.nets.inference import embed

SIZE = (64, 64)


@pytest.fixture(scope="module")
def setting(fused, folder):
    net, db = fused
    training, test = (load(f"folder:{folder}", split) for split in ("train", "test"))
    images = torch.from_numpy(np.stack([net.preprocess(test.image(i)) for i in range(3)]))
    return net, db, Gallery(training, embed(net, training)), test, images


@pytest.fixture(scope="module")
def rows(setting):
    net, db, *_ = setting
    return {method.name: method for method in rivals.rivals(net, db)}


def random_maps(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_first_component_is_that_of_the_svd_with_the_sign_of_the_mean():
    maps = random_maps(2, 5, 3, 4) + torch.linspace(0, 3, 12).reshape(3, 4) * torch.arange(5.0)[:, None, None]
    for own, found in zip(maps, rivals.first_component(maps), strict=True):
        features = own.flatten(1).T.double().numpy()
        _, _, axes = np.linalg.svd(features - features.mean(axis=0))
        projected = (features - features.mean(axis=0)) @ axes[0]
        projected *= np.sign(projected @ (features.mean(axis=1) - features.mean()))
        expected = projected.clip(min=0).reshape(3, 4) / np.linalg.norm(projected)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not rivals.first_component(torch.zeros(1, 2, 3, 3)).any()


def test_channel_sum_and_fem_by_hand():
    # Nine cells of 0 and one of 10: mean 1, deviation 3, so that only the last is above 7.
    first = torch.tensor([0.0] * 9 + [10.0]).reshape(2, 5)
    # Mean 0.5, deviation 0.5: no cell is above 1.5.
    second = torch.tensor([0.0, 1.0] * 5).reshape(2, 5)
    maps = torch.stack([first, second])[None]
    assert rivals.strong_cells(maps).flatten().tolist() == [0] * 9 + [1]
    assert rivals.channel_sum(maps).flatten().tolist() == [0, 1] * 4 + [0, 11]
    assert rivals.channel_sum(-maps).any() == 0


def test_the_gaussian_is_the_same_for_every_image_and_in_its_centre():
    found = rivals.gaussian(torch.rand(2, 3, 41, 21)).heatmaps
    assert (found[0] == found[1]).all()
    assert np.unravel_index(found[0].argmax(), found[0].shape) == (20, 10)
    one_sigma = found[0, 20 + 8, 10] / found[0, 20, 10]  # a fifth of 40
    assert one_sigma == pytest.approx(np.exp(-0.5), abs=0.02)


def test_two_layers_are_multiplied(setting, rows):
    net, db, _, _, images = setting
    with torch.no_grad():
        seen = net.activations(images, db.fusion.layer)
    coarse, fine = rivals.channel_sum(seen.maps), rivals.channel_sum(seen.fine)
    one = Explanation.of(place(coarse, db.geometry, SIZE).numpy())
    np.testing.assert_allclose(rows["channel sum"].explain(images, None).heatmaps, one.heatmaps, atol=1e-6)
    both = fuse(place(coarse, db.geometry, fine.shape[1:], db.fusion.geometry), fine)
    two = Explanation.of(place(both, db.fusion.geometry, SIZE).numpy())
    np.testing.assert_allclose(rows["channel sum, two layers"].explain(images, None).heatmaps, two.heatmaps, atol=1e-6)


def test_wrong_cluster_and_mean_of_clusters_are_weighted_sums(setting, rows):
    net, db, _, _, images = setting
    clusters = Explainer(net, db)(images).clusters
    with torch.no_grad():
        maps = net.activations(images).maps.numpy()
    distance = np.linalg.norm(db.centroids[clusters][:, None] - db.centroids, axis=2)
    mean = np.tile(db.weights_mean.mean(axis=0), (3, 1))
    for name, weights in (
        ("cluster farthest away", db.weights_mean[distance.argmax(axis=1)]),
        ("mean of all clusters", mean),
    ):
        kept = np.where(np.argsort(np.argsort(-weights, axis=1), axis=1) < db.top_k, weights, 0)
        summed = np.einsum("bk,bkhw->bhw", kept, maps).clip(min=0).astype(np.float32)
        expected = Explanation.of(place(summed, db.geometry, SIZE))
        np.testing.assert_allclose(rows[name].explain(images, None).heatmaps, expected.heatmaps, atol=1e-4)


def test_the_untrained_head_has_a_database_of_its_own(setting):
    net, db, gallery, _, images = setting
    before = net.sha256()
    method = rivals.untrained_head(net, db, gallery)
    found = method.explain(images, None)
    assert net.sha256() == before
    own = Explainer(net, db)(images)
    assert np.abs(found.embeddings - own.embeddings).max() > 0.1
    with torch.no_grad():
        copied = rivals.untrained(net)
        assert torch.equal(copied.backbone(images), net.backbone(images))
    np.testing.assert_allclose(copied(images).detach(), found.embeddings, atol=1e-5)


def test_partners_are_training_images_of_the_class(setting):
    net, db, gallery, test, images = setting
    labels = test.labels
    similarity, contributions = rivals.with_partner(net, db, gallery, labels)
    assert similarity.backprop
    assert not contributions.backprop
    found = similarity.explain(images, np.arange(3)).heatmaps
    candidates = np.flatnonzero(gallery.labels == labels[0])
    maps = [
        GradCAM(net)(images[:1], Similarity(torch.from_numpy(gallery.embedded.embeddings[i]))).heatmaps[0]
        for i in candidates
    ]
    assert min(np.abs(found[0] - each).max() for each in maps) < 1e-5
    assert contributions.explain(images, np.arange(3)).heatmaps.shape == (3, *SIZE)
