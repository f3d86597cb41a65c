"""What is measured beside the published method, against autograd on single triplets."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import embedcam
from embedcam.builder.build import build_database
from embedcam.builder.refinement import _enlarged, _evenly, _recognised, _spread
from embedcam.builder.triplets import Partners
from embedcam.data import load
from embedcam.errors import DatabaseError
from embedcam.nets import EmbeddingNet
from embedcam.nets.geometry import Geometry


def test_weights_of_the_finer_layer_are_the_mean_over_single_triplets_at_the_larger_size(fused, folder):
    net, db = fused
    samples = load(f"folder:{folder}", "train")
    assert db.fusion.layer == "layer3"
    assert db.fusion.geometry == Geometry((16, 16), (0.5, 0.5))
    assert db.refinement.input_size == (128, 128)

    larger = replace(net.preprocess, input_size=(128, 128))
    images = torch.from_numpy(np.stack([larger(samples.image(i)) for i in range(len(samples))]))
    known = torch.from_numpy(db.exemplars.embeddings)
    partners = Partners(samples.labels, samples.names, 5)
    kept = {}
    handle = net.backbone.layer3.register_forward_hook(lambda _, __, out: kept.update(maps=out))
    weights, distances = [], []
    for i in range(len(samples)):
        z = net(images[i : i + 1])
        each = []
        for p, n in zip(*partners.draw(i), strict=True):
            margin = (z * (known[p] - known[n])).sum()
            (gradient,) = torch.autograd.grad(margin, kept["maps"], retain_graph=True)
            each.append(gradient.mean(dim=(2, 3))[0].numpy())
        weights.append(np.mean(each, axis=0))
        distances.append(1 - (db.centroids @ z[0].detach().numpy()).max())
    handle.remove()
    before = 1 - (db.exemplars.embeddings * db.centroids[db.exemplars.cluster]).sum(axis=1)
    for c in range(db.clusters):
        mine = np.flatnonzero(db.exemplars.cluster == c)
        mine = mine[np.argsort(before[mine])]
        # Of a cluster of ten, eight: neither the third nor the eighth by distance.
        mine = np.delete(mine, [2, 7]) if len(mine) == 10 else mine
        assert len(mine) <= 8
        expected = np.asarray(weights)[mine].mean(axis=0)
        np.testing.assert_allclose(db.fusion.weights_mean[c], expected, rtol=1e-3, atol=1e-9)
    # The distances are those of twelve of the 18 images.
    chosen = _evenly(db.exemplars.cluster, before)
    assert len(set(chosen.tolist())) == 12
    apart = [i for i in chosen if before[i] > 1e-4]
    expected = np.median(np.asarray(distances)[apart] / before[apart]) if apart else 1.0
    assert np.isclose(db.refinement.distance_scale, expected, rtol=1e-2)


def test_of_large_clusters_some_members_are_looked_at_from_the_innermost_to_the_outermost():
    cluster = np.array([0] * 15 + [1] * 3)
    distance = np.concatenate([np.arange(15.0)[::-1], [1.0, 0.5, 2.0]]).astype(np.float32)
    # Of 15 every second by distance, from both ends; of 3 all.
    np.testing.assert_array_equal(_spread(cluster, distance), [0, 2, 4, 6, 8, 10, 12, 14, 15, 16, 17])


def test_images_to_explain_are_taken_evenly_from_all_clusters():
    cluster = np.repeat([1, 0], 32)
    distance = np.arange(64.0).astype(np.float32)
    chosen = _evenly(cluster, distance)
    assert np.bincount(cluster[chosen]).tolist() == [6, 6]
    assert {32, 31} <= set(chosen.tolist())  # the innermost of the first cluster, and the outermost of the last
    np.testing.assert_array_equal(_evenly(cluster[:5], distance[:5]), np.arange(5))
    for images, looked_at in ((500, 12), (2000, 40), (20_000, 100)):
        assert len(_evenly(np.zeros(images, dtype=np.int64), np.arange(images, dtype=np.float32))) == looked_at


def test_weights_of_the_finer_layer_are_left_out_unless_they_are_asked_for_or_needed(fused, folder):
    net, _ = fused
    db = build_database(net, f"folder:{folder}", clusters=4, top_k=12, pairs=2)
    assert db.fusion.layer == "layer3"
    assert db.fusion.weights_mean is None
    with pytest.raises(DatabaseError, match="no channel weights of layer 'layer3' to fuse; build it again with"):
        embedcam.Explainer(net, db, transfer="soft-contrast", fused=True)
    assert embedcam.Explainer(net, db).module.fusion is not None

    inner = copy.copy(net)
    inner.layer = "layer3"
    assert not inner.decomposable
    db = build_database(inner, f"folder:{folder}", clusters=4, top_k=12, pairs=2)
    assert db.fusion.layer == "layer2"
    assert db.fusion.weights_mean.shape == (4, 128)
    assert embedcam.Explainer(inner, db).module.fusion is not None


def test_networks_without_a_finer_layer_of_parts_are_explained_by_one_at_the_larger_size(net, folder, monkeypatch):
    monkeypatch.setattr("embedcam.builder.refinement._RECOGNISED", 0.0)
    # The finer layer of `tiny` has a cell every 2 pixels: edges, not parts.
    db = build_database(net, f"folder:{folder}", clusters=2, top_k=4, pairs=2)
    assert db.fusion is None
    assert db.refinement.input_size == (64, 64)  # 1.75 * 32, to the next multiple of 32
    assert embedcam.Explainer(net, db).preprocess.input_size == (64, 64)


def test_a_size_counts_in_which_images_fall_into_clusters_of_their_own_label():
    cluster = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
    labels = np.array([0, 0, 1, 1, 1, 1, 2, 2, 2, 2])  # image 2 lies among others from the start
    everyone = np.arange(10)
    assert _recognised(cluster, cluster, labels, everyone)
    elsewhere = np.array([0, 0, 1, 1, 1, 1, 2, 2, 2, 0])  # image 2 is known now, image 9 no more: 9 of 10 as before
    assert _recognised(elsewhere, cluster, labels, everyone)
    elsewhere[8] = 0  # 8 of 10, below 0.9 * 9 of 10
    assert not _recognised(elsewhere, cluster, labels, everyone)


def test_a_network_that_knows_images_in_no_other_size_is_explained_in_its_own(fused, folder):
    net, _ = fused  # untrained
    db = build_database(net, f"folder:{folder}", clusters=4, top_k=12, pairs=2)
    assert db.refinement.input_size == (64, 64)
    assert db.fusion.layer == "layer3"
    assert np.isclose(db.refinement.distance_scale, 1, atol=1e-2)


def test_a_database_can_do_without_it(fused, folder):
    net, _ = fused
    db = build_database(net, f"folder:{folder}", clusters=4, top_k=12, pairs=2, refinement=False)
    assert db.refinement is None
    assert embedcam.Explainer(net, db).preprocess == net.preprocess


def test_a_network_of_one_size_is_explained_at_it(folder):
    class Rigid(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 6, 8, 8), nn.ReLU(), nn.Conv2d(6, 6, 2, 2), nn.ReLU())
            self.head = nn.Linear(6 * 4, 8)

        def forward(self, x):
            return nn.functional.normalize(self.head(self.body(x).flatten(1)))

    torch.manual_seed(0)
    net = embedcam.wrap(Rigid(), layer="body.3", preprocess=embedcam.Preprocess((32, 32)))
    db = build_database(net, f"folder:{folder}", clusters=2, top_k=4, pairs=2)
    assert db.fusion.layer == "body.1"
    assert db.refinement.input_size == (32, 32)
    assert np.isclose(db.refinement.distance_scale, 1, atol=1e-3)


def test_prepared_images_are_taken_in_their_own_size():
    torch.manual_seed(0)
    net = EmbeddingNet("resnet18", 8, image_size=64).eval()
    images = [(torch.rand(3, 64, 64), label % 2) for label in range(8)]
    db = build_database(net, images, clusters=2, top_k=4, pairs=2)
    assert db.refinement.input_size == (64, 64)


@pytest.mark.parametrize(
    ("size", "factor", "unit", "enlarged"),
    [
        ((224, 224), 1.75, 32, (384, 384)),
        ((256, 128), 1.75, 32, (448, 224)),
        ((128, 64), 1.75, 32, (256, 128)),
        ((224, 112), 1.75, 14, (392, 196)),
        ((225, 224), 1.75, 32, (384, 384)),  # no multiple keeps these proportions
    ],
)
def test_enlarged_inputs_keep_their_proportions(size, factor, unit, enlarged):
    assert _enlarged(size, factor, unit) == enlarged
