"""Clusters of embeddings, and what is known of each."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from ..database.neighbors import Neighbors, searchable
from ..database.record import QUANTILES
from ..errors import DataError

logger = logging.getLogger("embedcam")


def kmeans(
    embeddings: NDArray[np.float32], clusters: int, metric: str, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """Cluster embeddings by k-means; clusters are never empty.

    With fewer different embeddings than clusters asked for, there are as many clusters as different embeddings, and
    a warning says so.

    Args:
        embeddings: (N, D) float32, of length 1 for cosine.
        clusters: How many, at least 1.
        metric: "cosine" (spherical k-means) or "euclidean".
        seed: Of the first centroids.

    Returns:
        Centroids (C, D), each embedding's cluster (N,), its distance to that centroid (N,).

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
    wanted, clusters = clusters, min(clusters, different)
    if clusters < wanted:
        logger.warning(
            "%d clusters asked for, but only %d different images: making %d clusters",
            wanted,
            different,
            clusters,
        )
    trainer = faiss.Kmeans(
        embeddings.shape[1],
        clusters,
        niter=50,
        nredo=5,
        seed=seed % 2**31,
        spherical=metric == "cosine",
        # faiss otherwise samples 256 points a centroid without a word, and complains below 39.
        max_points_per_centroid=len(embeddings),
        min_points_per_centroid=1,
    )
    trainer.train(embeddings)
    centroids = np.asarray(trainer.centroids, dtype=np.float32)
    cluster, _ = Neighbors(centroids, metric).nearest(embeddings)
    used = np.unique(cluster)
    if len(used) < clusters:
        # Where there are too few different embeddings, faiss has split clusters of equal ones and moved the halves.
        centroids = np.stack([embeddings[cluster == c].mean(axis=0, dtype=np.float64) for c in used]).astype(np.float32)
        if metric == "cosine":
            centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    cluster, distance = Neighbors(centroids, metric).nearest(embeddings)
    used, cluster = np.unique(cluster, return_inverse=True)
    return np.ascontiguousarray(centroids[used]), cluster, distance


class Moments:
    """Sums of the channel weights of each cluster's images, in float64.

    They are additive: parts can be worked out apart, in any process, and put together in the end.

    Args:
        clusters: C.
        channels: K.

    Attributes:
        sums: (C, K).
        squares: (C, K), of the squared weights.
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
        """Add what was worked out apart.

        Args:
            sums: (C, K).
            squares: (C, K).
        """
        self.sums += sums
        self.squares += squares

    def result(self, counts: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Work out what all images of a cluster have in common, and how far they differ.

        Args:
            counts: (C,) images of each cluster, all above 0.

        Returns:
            Mean (C, K) and standard deviation (C, K).
        """
        mean = self.sums / counts[:, None]
        variance = np.maximum(self.squares / counts[:, None] - mean * mean, 0)
        return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


def distance_quantiles(distance: NDArray[np.float32], cluster: NDArray[np.int64], clusters: int) -> NDArray[np.float32]:
    """Describe how far out each cluster's members lie.

    Args:
        distance: (N,) of each image to its centroid.
        cluster: (N,).
        clusters: C.

    Returns:
        (C, 5) at 0.5, 0.9, 0.95, 0.99 and 1.
    """
    return np.stack([np.quantile(distance[cluster == c], QUANTILES) for c in range(clusters)]).astype(np.float32)
