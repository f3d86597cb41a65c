"""Clusters of embeddings, and statistics of each."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..database.neighbors import Neighbors, searchable
from ..database.quantiles import QUANTILES
from ..errors import DataError

logger = logging.getLogger("embedcam")


class Clustered(NamedTuple):
    """The clusters of the readable images.

    Attributes:
        kept: (N,) index of each readable image in the data set.
        bounds: (S + 1,) index of each shard's first readable image, then N.
        centroids: (C, D) float32.
        cluster: (N,) index of each image's cluster.
        distance: (N,) float32, to the centroid of that cluster.
        held_out: (N,) float32, to the nearest centroid of a clustering without the image.
        class_sums: (L, D) float64, of the embeddings of each label; of each cluster if there are no labels.
        class_counts: (L,) images of each.
    """

    kept: NDArray[np.int64]
    bounds: NDArray[np.int64]
    centroids: NDArray[np.float32]
    cluster: NDArray[np.int64]
    distance: NDArray[np.float32]
    held_out: NDArray[np.float32]
    class_sums: NDArray[np.float64]
    class_counts: NDArray[np.int64]


def kmeans(
    embeddings: NDArray[np.float32], clusters: int, metric: str, seed: int = 0, *, starts: int = 5
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """Cluster embeddings by k-means; clusters are never empty.

    If there are fewer different embeddings than `clusters`, each becomes a cluster, with a warning.

    Args:
        embeddings: (N, D) float32, of length 1 for cosine.
        clusters: Number of clusters, at least 1.
        metric: "cosine" (spherical k-means) or "euclidean".
        seed: Seed of the initial centroids.
        starts: Number of initialisations, of which the best result is kept.

    Returns:
        Centroids (C, D), the cluster of each embedding (N,), and its distance to that centroid (N,).

    Raises:
        DataError: If `clusters` is below 1, there is no embedding, or one is not finite or far too long.
    """
    import faiss

    if clusters < 1:
        raise DataError(f"there must be at least 1 cluster, got {clusters}; set --clusters to 1 or more")
    if not len(embeddings):
        raise DataError("there is no embedding to cluster; give at least one image")
    usable = searchable(embeddings)
    if not usable.all():
        raise DataError(
            f"the embedding of image {int(usable.argmin())} is not finite (NaN, infinity, or too large to compare); "
            "check the network and its training"
        )
    different = len(np.unique(embeddings, axis=0)) if len(embeddings) <= 100 * clusters else len(embeddings)
    if different < clusters:
        logger.warning(
            "%d clusters asked for, but only %d different images: making %d clusters", clusters, different, different
        )
        clusters = different
    trainer = faiss.Kmeans(
        embeddings.shape[1],
        clusters,
        niter=50,
        nredo=starts,
        seed=seed % 2**31,
        spherical=metric == "cosine",
        # By default, faiss silently samples 256 points per centroid, and warns below 39.
        max_points_per_centroid=len(embeddings),
        min_points_per_centroid=1,
    )
    trainer.train(embeddings)
    centroids = np.asarray(trainer.centroids, dtype=np.float32)
    cluster, _ = Neighbors(centroids, metric).nearest(embeddings)
    used = np.unique(cluster)
    if len(used) < clusters:
        # With too few different embeddings, faiss splits clusters of equal ones and moves the halves.
        centroids = np.stack([embeddings[cluster == c].mean(axis=0, dtype=np.float64) for c in used]).astype(np.float32)
        if metric == "cosine":
            centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    cluster, distance = Neighbors(centroids, metric).nearest(embeddings)
    used, cluster = np.unique(cluster, return_inverse=True)
    return np.ascontiguousarray(centroids[used]), cluster, distance


def held_out_distances(
    embeddings: NDArray[np.float32], clusters: int, metric: str, seed: int = 0, folds: int = 5
) -> NDArray[np.float32]:
    """Measure how far embeddings lie from the centroids of a clustering without them.

    Embeddings lie closer to centroids that were computed from them than new embeddings do, so their own distances would
    make too many new images look unusual.

    Args:
        embeddings: (N, D) float32, of length 1 for cosine.
        clusters: Number of clusters.
        metric: "cosine" or "euclidean".
        seed: Seed of the folds and the k-means.
        folds: Number of parts, each measured with centroids of all others.

    Returns:
        (N,); zero for a single embedding.
    """
    count = len(embeddings)
    distance = np.zeros(count, dtype=np.float32)
    if count == 1:
        return distance
    fold = np.random.default_rng(seed % 2**63).permutation(count) % folds
    for number in range(min(folds, count)):
        others = embeddings[fold != number]
        centroids, _, _ = kmeans(others, min(clusters, len(others)), metric, seed, starts=1)
        distance[fold == number] = Neighbors(centroids, metric).nearest(embeddings[fold == number])[1]
    return distance


class Moments:
    """Sums of the channel weights over each cluster's images, in float64.

    They are additive: any process can compute those of some images, and they are merged at the end.

    Args:
        clusters: C.
        channels: K.

    Attributes:
        sums: (C, K).
        squares: (C, K), sums of the squared weights.
    """

    def __init__(self, clusters: int, channels: int) -> None:
        self.sums, self.squares = (np.zeros((clusters, channels)) for _ in range(2))

    def add(self, cluster: NDArray[np.int64], weights: NDArray[np.float32]) -> None:
        """Add some images.

        Args:
            cluster: (N,) index of each image's cluster.
            weights: (N, K).
        """
        exact = weights.astype(np.float64)
        np.add.at(self.sums, cluster, exact)
        np.add.at(self.squares, cluster, exact * exact)

    def merge(self, sums: NDArray[np.float64], squares: NDArray[np.float64]) -> None:
        """Add the sums of other images.

        Args:
            sums: (C, K).
            squares: (C, K).
        """
        self.sums += sums
        self.squares += squares

    def result(self, counts: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Compute mean and standard deviation of each cluster.

        Args:
            counts: (C,) number of images, all above 0.

        Returns:
            Mean (C, K) and standard deviation (C, K).
        """
        mean = self.sums / counts[:, None]
        variance = np.maximum(self.squares / counts[:, None] - mean * mean, 0)
        return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


def distance_quantiles(distance: NDArray[np.float32], cluster: NDArray[np.int64], clusters: int) -> NDArray[np.float32]:
    """Compute the quantiles of the distances of each cluster's images.

    Args:
        distance: (N,) of each image.
        cluster: (N,) index of each image's cluster.
        clusters: C.

    Returns:
        (C, 5) at 0.5, 0.9, 0.95, 0.99 and 1.
    """
    return np.stack([np.quantile(distance[cluster == c], QUANTILES) for c in range(clusters)]).astype(np.float32)


def histogram(cluster: NDArray[np.int64], labels: NDArray[np.int64], clusters: int, names: int) -> NDArray[np.int64]:
    """Count the images of each label in each cluster.

    Args:
        cluster: (N,) index of each image's cluster.
        labels: (N,).
        clusters: C.
        names: L, number of labels.

    Returns:
        (C, L).
    """
    counts = np.zeros((clusters, names), dtype=np.int64)
    np.add.at(counts, (cluster, labels), 1)
    return counts
