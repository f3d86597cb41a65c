"""The database as a whole, against the pieces put together by hand."""

import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import embedcam
from embedcam.builder.clusters import held_out_distances
from embedcam.builder.triplets import Partners
from embedcam.data import load
from embedcam.database.quantiles import QUANTILES
from embedcam.errors import DatabaseError, DataError, TargetError
from embedcam.explain.weighting import WEIGHTINGS, Weighting
from embedcam.nets import EmbeddingNet
from embedcam.nets.inference import embed


def built(net, folder, **options):
    return embedcam.build_database(net, f"folder:{folder}", **{"clusters": 4, "top_k": 12, **options})


def every_triplet(labels, anchor):
    """All partners of an anchor: positives (T,) and negatives (T,)."""
    positives = np.flatnonzero((labels == labels[anchor]) & (np.arange(len(labels)) != anchor))
    return (side.ravel() for side in np.meshgrid(positives, np.flatnonzero(labels != labels[anchor])))


def by_hand(net, samples, method, pairs):
    """Channel weights of every image: one image and one triplet at a time, by autograd alone."""
    images = torch.stack([torch.from_numpy(net.preprocess(samples.image(i))) for i in range(len(samples))])
    with torch.no_grad():
        z = net(images)
        maps = net.backbone.features(images)
    draw = partial(every_triplet, samples.labels) if pairs is None else Partners(samples.labels, "", pairs).draw
    weights = torch.zeros(len(samples), maps.shape[1])
    for i in range(len(samples)):
        partners = list(zip(*draw(i), strict=True))
        for p, n in partners:
            leaf = maps[i : i + 1].clone().requires_grad_()
            a = net.head_embed(leaf.mean(dim=(2, 3)))[0]
            margin = a @ (z[p] - z[n])
            if net.metric == "euclidean":
                margin = (a - z[n]).square().sum() - (a - z[p]).square().sum()
            (g,) = torch.autograd.grad(margin, leaf)
            if method == "gradcam":
                weights[i] += g.mean(dim=(2, 3))[0] / len(partners)
            elif method == "rectified":
                weights[i] += g.clamp(min=0).amax(dim=(2, 3))[0] / len(partners)
            else:
                below = 2 + leaf.detach().sum(dim=(2, 3), keepdim=True) * g
                weights[i] += (g.clamp(min=0) / below).sum(dim=(2, 3))[0] / len(partners)
    return weights.numpy()


@pytest.fixture(autouse=True)
def rectified(monkeypatch):
    """A weighting from outside, which has no closed form."""
    monkeypatch.setitem(WEIGHTINGS._parts, "rectified", Weighting(lambda _, g: g.clamp(min=0).amax(dim=(-2, -1))))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(
    ("method", "pairs"), [("gradcam", None), ("gradcam", 5), ("gradcam++-exact", 5), ("rectified", 5)]
)
def test_weights_are_those_of_single_triplets_averaged_over_each_cluster(folder, metric, method, pairs):
    torch.manual_seed(0)
    net = EmbeddingNet("tiny", 8, image_size=32, metric=metric).eval()
    db, samples = built(net, folder, method=method, pairs=pairs), load(f"folder:{folder}", "train")
    weights = by_hand(net, samples, method, pairs)

    assert db.pairs == (pairs or 0)
    assert list(db.exemplars.path) == list(samples.ids)
    scale = np.abs(weights).max()
    for cluster in range(db.clusters):
        members = weights[db.exemplars.cluster == cluster]
        np.testing.assert_allclose(db.weights_mean[cluster], members.mean(axis=0), atol=1e-6 * scale)
        np.testing.assert_allclose(db.weights_std[cluster], members.std(axis=0), atol=1e-5 * scale)
        assert db.counts[cluster] == len(members)
        best = np.argsort(-db.weights_mean[cluster], kind="stable")[:12]
        np.testing.assert_array_equal(db.top_channels[cluster], best)
        np.testing.assert_array_equal(db.top_weights[cluster], db.weights_mean[cluster, best])
    histogram = np.zeros_like(db.label_histogram)
    np.add.at(histogram, (db.exemplars.cluster, samples.labels), 1)
    np.testing.assert_array_equal(db.label_histogram, histogram)


def test_weights_of_drawn_triplets_approach_those_of_all_triplets(net, folder):
    exact = built(net, folder, refinement=False).weights_mean
    away = []
    for pairs in (5, 50, 500):
        drawn = built(net, folder, pairs=pairs, refinement=False).weights_mean
        cosine = (exact * drawn).sum(axis=1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(drawn, axis=1)
        away.append(1 - cosine.min())
    assert away[0] > 3 * away[1] > 9 * away[2]
    assert away[2] < 1e-3


def test_triplets_of_weightings_that_are_not_linear_are_drawn(net, folder):
    assert built(net, folder, method="gradcam++-exact", refinement=False).pairs == 50


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "gradcam++-exact", "gradcam++-elementwise"])
def test_the_short_way_of_pooled_heads_gives_what_whole_feature_maps_give(net, folder, method):
    short = built(net, folder, method=method)
    module = embedcam.wrap(net, "backbone.features", preprocess=net.preprocess)
    wrapped = built(module, folder, method=method)
    module.head_of_means = lambda: None
    long = built(module, folder, method=method)

    assert embed(module, load(f"folder:{folder}", "train")).pooled is None
    assert embed(net, load(f"folder:{folder}", "train")).pooled is not None
    np.testing.assert_allclose(wrapped.weights_mean, short.weights_mean, atol=1e-6)
    scale = np.abs(short.weights_mean).max()
    np.testing.assert_allclose(short.weights_mean, long.weights_mean, atol=1e-5 * scale)


def test_two_builds_give_the_same_bytes(net, folder, tmp_path):
    for name in ("a", "b"):
        built(net, folder).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    built(net, folder, seed=1).save(tmp_path / "c")
    assert (tmp_path / "c").read_bytes() != (tmp_path / "a").read_bytes()


def test_the_creation_time_follows_source_date_epoch(net, folder):
    assert built(net, folder).created == "2023-11-14T22:13:20+00:00"


def test_the_network_is_left_as_it_was(net, folder):
    net.train()
    before = net.sha256()
    built(net, folder, method="gradcam++-exact")
    assert net.training
    assert net.sha256() == before
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize(("backbone", "layer"), [("densenet121", "features"), ("tiny", "features.5")])
def test_heads_that_need_whole_feature_maps(folder, backbone, layer):
    torch.manual_seed(0)
    net = EmbeddingNet(backbone, 8, image_size=32 if backbone == "tiny" else 64, layer=layer).eval()
    db = built(net, folder, pairs=2)
    assert db.network.layer == layer
    assert np.isfinite(db.weights_mean).all()
    assert db.weights_mean.any()


def test_without_labels_clusters_serve_as_labels(net):
    images = list(torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    db = embedcam.build_database(net, images, clusters=6, top_k=5, pairs=3)

    assert db.label_names is None
    assert db.label_histogram is None
    assert (db.exemplars.label == -1).all()
    assert db.weights_mean.any(axis=1).all()
    with pytest.raises(DataError, match="need at least two clusters"):
        embedcam.build_database(net, images, clusters=1, top_k=5, pairs=3)


def test_unlabelled_leaves_labels_out(net, folder):
    db = built(net, folder, unlabelled=True)
    assert db.label_names is None
    images = load(f"folder:{folder}", "train")
    np.testing.assert_array_equal(db.weights_mean, built(net, folder, unlabelled=True).weights_mean)
    assert not np.array_equal(db.weights_mean, built(net, folder).weights_mean)
    assert db.counts.sum() == len(images)


def test_of_a_single_class_clusters_stand_for_classes(net, caplog):
    images = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    db = embedcam.build_database(net, [(image, "bird") for image in images], top_k=5)
    assert db.label_names is None
    assert db.clusters == 4
    assert "all images are of class 'bird'; clusters stand for classes" in caplog.text


@pytest.mark.parametrize("count", [2, 3, 12, 30, 60])
def test_few_images_without_labels_make_fewer_clusters(net, count, caplog):
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    db = embedcam.build_database(net, list(images), top_k=5)
    assert db.clusters == max(2, count // 3)
    assert f"{count} images make {db.clusters} clusters instead of 50" in caplog.text


def test_a_torch_data_set_will_do(net):
    images = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 3
    db = embedcam.build_database(net, torch.utils.data.TensorDataset(images, labels), clusters=3, top_k=5, pairs=3)

    assert db.label_names == ("0", "1", "2")
    assert db.exemplars.label.tolist() == labels.tolist()


def test_exemplars_are_optional(net, folder):
    assert built(net, folder, exemplars=False).exemplars is None


@pytest.mark.parametrize(("images", "clusters"), [(2, 2), (5, 2), (12, 4), (60, 20)])
def test_few_images_make_fewer_clusters_with_a_warning(net, caplog, images, clusters):
    pictures = torch.rand(images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    db = embedcam.build_database(net, [(picture, i % 2) for i, picture in enumerate(pictures)], pairs=2)
    assert db.clusters == clusters
    assert db.counts.sum() == images
    assert f"{images} images make {clusters} clusters instead of 50" in caplog.text


@pytest.mark.parametrize(("images", "clusters"), [(12, 4), (50, 16)])
def test_few_images_without_labels_make_fewer_clusters_said_in_one_line(net, caplog, images, clusters):
    pictures = torch.rand(images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert embedcam.build_database(net, list(pictures), pairs=2).clusters == clusters
    assert [record.getMessage() for record in caplog.records] == [
        f"{images} images make {clusters} clusters instead of 50"
    ]


def test_equal_images_without_labels_are_refused_without_a_word_of_classes(net):
    with pytest.raises(DataError, match="images without labels need at least two clusters, 12 images make one"):
        embedcam.build_database(net, [torch.zeros(3, 32, 32)] * 12, pairs=2)


@pytest.mark.parametrize("pairs", [None, 5])
def test_images_alone_in_their_class_are_clustered_and_weighed_by_negatives(net, folder, caplog, pairs):
    samples = load(f"folder:{folder}", "train")
    images = [(net.preprocess(samples.image(i)), f"class {i % 3}" if i > 1 else f"alone {i}") for i in range(12)]
    db = embedcam.build_database(net, images, clusters=3, top_k=128, pairs=pairs)

    assert "2 of 5 classes have a single image" in caplog.text
    assert len(db.exemplars) == db.counts.sum() == db.label_histogram.sum() == 12
    z = torch.from_numpy(db.exemplars.embeddings)
    negatives = np.arange(1, 12) if pairs is None else Partners(db.exemplars.label, db.label_names, pairs, 0).draw(0)[1]
    with torch.no_grad():
        maps = net.backbone.features(torch.from_numpy(images[0][0])[None])
    leaf = maps.clone().requires_grad_()
    (g,) = torch.autograd.grad(net.head_embed(leaf.mean(dim=(2, 3)))[0] @ -z[negatives].mean(dim=0), leaf)
    expected = g.mean(dim=(2, 3))[0].numpy()
    weights = np.empty_like(expected)
    weights[db.exemplars.top_channels[0]] = db.exemplars.top_weights[0]
    np.testing.assert_allclose(weights, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("pairs", [None, 5])
def test_a_class_without_readable_images_leaves_too_few_classes(net, folder, tmp_path, pairs):
    samples = load(f"folder:{shutil.copytree(folder, tmp_path / 'copy')}", "train")
    for row in np.flatnonzero(samples.labels > 0):
        samples.files[row].write_bytes(b"nothing")
    with pytest.raises(DataError, match="two classes, found one only: 'class0'"):
        embedcam.build_database(net, samples, clusters=2, top_k=4, pairs=pairs)


def test_distances_are_calibrated_on_clusterings_without_the_image(net):
    pictures = list(torch.rand(30, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    db = embedcam.build_database(net, [(picture, i % 2) for i, picture in enumerate(pictures)], clusters=6, pairs=2)
    held_out = held_out_distances(db.exemplars.embeddings, 6, "cosine", 0)
    for cluster in range(6):
        expected = np.quantile(held_out[db.exemplars.cluster == cluster], QUANTILES)
        np.testing.assert_allclose(db.distance_quantiles[cluster], expected, rtol=1e-6)
    own = 1 - (db.exemplars.embeddings * db.centroids[db.exemplars.cluster]).sum(axis=1)
    assert held_out.mean() > 1.2 * own.mean()


def test_an_unreadable_image_is_left_out_or_an_error(net, folder, tmp_path, caplog):
    copy = shutil.copytree(folder, tmp_path / "copy")
    name = load(f"folder:{copy}", "train").ids[2]
    path = copy / "images" / name
    path.write_bytes(path.read_bytes()[:-100])

    db = built(net, copy)
    assert name in caplog.text
    assert name not in db.exemplars.path
    assert int(db.counts.sum()) == 17
    with pytest.raises(DataError, match=path.name):
        built(net, copy, strict=True)


def test_layers_of_fewer_channels_store_all_of_them_with_a_word(net, folder, caplog):
    assert built(net, folder, top_k=129).top_k == 128
    assert "layer 'features' has 128 channels; all of them are stored, not 129" in caplog.text


def test_options_that_cannot_be_used_are_named(net, folder):
    with pytest.raises(DatabaseError, match="at least 1 channel is stored per cluster, got 0"):
        built(net, folder, top_k=0)
    with pytest.raises(TargetError, match="unknown method 'lime'; use one of gradcam, gradcam"):
        built(net, folder, method="lime")
    with pytest.raises(DataError, match="--pairs"):
        built(net, folder, pairs=0)
    with pytest.raises(DataError, match="not a data set"):
        embedcam.build_database(net, 5)


def test_a_folder_that_could_not_be_listed_stops_a_strict_build_only(net, folder):
    samples = replace(load(f"folder:{folder}"), problems=("cannot list lost+found",))
    assert embedcam.build_database(net, samples, clusters=2, top_k=4, pairs=2).counts.sum() == len(samples)
    with pytest.raises(DataError, match="cannot list lost"):
        embedcam.build_database(net, samples, clusters=2, top_k=4, pairs=2, strict=True)
