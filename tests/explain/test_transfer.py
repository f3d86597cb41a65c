"""Every transfer against the same weights put together image by image."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from embedcam.data.preprocess import Preprocess
from embedcam.database import Exemplars, Fusion, NetworkRecord, Refinement, WeightDatabase
from embedcam.database.neighbors import Neighbors
from embedcam.database.record import top_channels
from embedcam.errors import DatabaseError
from embedcam.explain.transfer import TRANSFERS, Lookup, _weighted_median
from embedcam.nets.geometry import Geometry

C, K, FINE, D, T, N = 12, 20, 9, 4, 5, 30


def unit(points):
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def database(metric="cosine"):
    rng = np.random.default_rng(0)
    mean, own = (rng.standard_normal((rows, K)).astype(np.float32) for rows in (C, N))
    channels, weights = top_channels(mean, T)
    own_channels, own_weights = top_channels(own, T)
    centroids, embeddings = (rng.standard_normal((rows, D)).astype(np.float32) for rows in (C, N))
    if metric == "cosine":
        centroids, embeddings = unit(centroids), unit(embeddings)
    fine = rng.standard_normal((C, FINE)).astype(np.float32)
    return WeightDatabase(
        network=NetworkRecord("ab" * 32, "resnet18", "layer4", K, D, metric, Preprocess((32, 32))),
        geometry=Geometry((32, 32), (0.5, 0.5)),
        method="gradcam",
        target="triplet_margin",
        pairs=5,
        seed=0,
        created="",
        centroids=centroids,
        counts=np.arange(1, C + 1),
        weights_mean=mean,
        weights_std=np.abs(mean),
        top_channels=channels,
        top_weights=weights,
        distance_quantiles=np.sort(rng.random((C, 5)).astype(np.float32), axis=1),
        exemplars=Exemplars(
            embeddings, own_channels, own_weights, np.zeros(N, np.int64), np.full(N, -1), tuple(map(str, range(N)))
        ),
        refinement=Refinement((64, 64), 2.0, Fusion("layer3", Geometry((16, 16), (0.5, 0.5)), fine)),
    )


def dense(channels, weights, width):
    full = np.zeros(width)
    full[channels] = weights
    return full


def strongest(weights):
    channels = np.argsort(-weights, kind="stable")[:T]
    return dense(channels, weights[channels], len(weights))


def by_hand(db, transfer, z, layer, scale):
    """Put the weights of one image together."""
    mean = (db.weights_mean, db.fusion.weights_mean)[layer].astype(float)
    euclidean = db.network.metric == "euclidean"

    def distance(points):
        return np.linalg.norm(points - z, axis=1) if euclidean else 1 - points @ z

    far = distance(db.centroids)
    if layer == 0 and transfer in ("nearest", "neighbors"):
        rows = np.argsort(distance(db.exemplars.embeddings))[: 1 if transfer == "nearest" else 10]
        ex = db.exemplars
        return strongest(np.mean([dense(ex.top_channels[r], ex.top_weights[r], K) for r in rows], axis=0))
    weights = mean[far.argmin()]
    if transfer.startswith("soft"):
        medians = np.repeat(db.distance_quantiles[:, 0], db.counts).astype(float)
        exponent, unit = (far / scale, medians) if not euclidean else ((far / scale) ** 2 / 2, medians**2 / 2)
        share = np.exp(-exponent / np.median(unit))
        share[np.argsort(far)[10:]] = 0  # the ten nearest clusters count
        weights = share / share.sum() @ mean
    if transfer.endswith("contrast"):
        weights = weights - mean.mean(axis=0)
    return strongest(weights)


def look_up(db, embeddings, scale=1.0):
    """What the module tells a transfer, in float64."""
    z, centroids = torch.from_numpy(embeddings), torch.from_numpy(db.centroids)
    cosine = db.network.metric == "cosine"
    similarities = z @ centroids.T if cosine else -torch.cdist(z, centroids).square() / 2
    near = Neighbors(db.exemplars.embeddings, db.network.metric).search(embeddings, 10)[0]
    return Lookup(z, similarities, similarities.argmax(dim=1), scale, torch.from_numpy(near))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("transfer", TRANSFERS.names())
@pytest.mark.parametrize("layer", [0, 1])
def test_weights_are_those_put_together_by_hand(transfer, metric, layer):
    db = database(metric)
    embeddings = unit(np.random.default_rng(1).standard_normal((6, D)))
    chosen = TRANSFERS[transfer](db)
    lookup = look_up(db, embeddings, scale=1.5)
    weights = chosen(lookup._replace(exemplars=lookup.exemplars[:, : chosen.exemplars]), layer)

    assert (weights != 0).sum(dim=1).tolist() == [T] * 6
    for z, row in zip(embeddings, weights.numpy(), strict=True):
        np.testing.assert_allclose(row, by_hand(db, transfer, z, layer, 1.5), atol=1e-5)


def test_a_single_cluster_has_nothing_to_be_contrasted_with():
    db = database()
    one = replace(
        db,
        **{
            name: getattr(db, name)[:1]
            for name in (
                [
                    "centroids",
                    "counts",
                    "weights_mean",
                    "weights_std",
                    "top_channels",
                    "top_weights",
                    "distance_quantiles",
                ]
            )
        },
        refinement=None,
    )
    embeddings = unit(np.ones((1, D)))
    weights = TRANSFERS["soft-contrast"](one)(look_up(one, embeddings), 0)
    np.testing.assert_allclose(weights[0].numpy(), strongest(one.weights_mean[0]), rtol=1e-6)


def test_what_a_transfer_lacks_is_named():
    with pytest.raises(DatabaseError, match="unknown transfer 'best'; .*use one of soft-contrast"):
        TRANSFERS["best"]
    for transfer in ("nearest", "neighbors"):
        with pytest.raises(DatabaseError, match="holds no exemplars; use --transfer cluster"):
            TRANSFERS[transfer](replace(database(), exemplars=None))


def test_the_median_training_image_is_found_without_writing_all_of_them_out():
    rng = np.random.default_rng(0)
    for clusters in range(1, 30):
        values = rng.integers(0, 6, clusters).astype(np.float32)
        counts = rng.integers(1, 5, clusters)
        assert _weighted_median(values, counts) == np.median(np.repeat(values, counts))
    # More images than there is memory for, and than an integer counts.
    assert _weighted_median(np.array([3, 1, 2], np.float32), np.array([2**40, 2**40, 2**41])) == 2
    assert _weighted_median(np.array([3, 1], np.float32), np.array([2**62, 2**62 + 2**61])) == 1
