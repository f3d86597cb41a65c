"""Weight transfer: from where an embedding lies to channel weights, by looking up what was stored. Needs no torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..database.neighbors import Neighbors
from ..database.record import top_channels
from ..database.weight_database import WeightDatabase
from ..errors import DatabaseError

TRANSFERS = ("soft-contrast", "soft", "contrast", "cluster", "neighbors", "nearest")
# How many clusters are mixed, and how many exemplars averaged; farther ones have next to no share.
CLUSTERS, _EXEMPLARS = 10, 10


class Chosen(NamedTuple):
    """The strongest channels of a layer for each image, and their weights.

    Attributes:
        channels: (B, T) int64.
        weights: (B, T) float32, strongest first.
    """

    channels: NDArray[np.int64]
    weights: NDArray[np.float32]


class Found(NamedTuple):
    """Where embeddings lie among what is stored.

    Attributes:
        clusters: (B, m) the nearest clusters, the nearest first.
        distances: (B, m) to their centroids.
        shares: (B, m) of each cluster's weights in the mix, adding up to 1; None where the nearest one's are taken.
        exemplars: (B, n) the nearest exemplars, the nearest first, or None where there are none.
    """

    clusters: NDArray[np.int64]
    distances: NDArray[np.float32]
    shares: NDArray[np.float32] | None
    exemplars: NDArray[np.int64] | None


class Transfer:
    """Looks up embeddings, and gives them the channel weights of what lies near.

    - "cluster": the mean weights of the nearest cluster, the published method;
    - "contrast": the same without what all clusters have in common, the mean over them;
    - "soft": the mean of the nearest clusters' weights by exp(-d / t), with the distance d (squared for Euclidean
      networks) and t that of the median training image;
    - "soft-contrast": both;
    - "nearest": the weights of the nearest exemplar;
    - "neighbors": the mean of the 10 nearest exemplars' weights.

    Args:
        database: What is stored.
        transfer: One of these.

    Attributes:
        name: The transfer.
        top_k: Channels T given to an image.
        weights: What is looked up (C, K) of each layer, the feature layer's first: the mean weights, for the contrasts
            less what all clusters have in common.
        spread: t above.

    Raises:
        DatabaseError: If there is no such transfer, or it needs exemplars and the database has none.

    Source:
        Chen et al. 2020 (arXiv 2001.06538), section 4, for "cluster" and "nearest".
    """

    def __init__(self, database: WeightDatabase, transfer: str) -> None:
        if transfer not in TRANSFERS:
            raise DatabaseError(f"unknown transfer {transfer!r}; use one of {', '.join(TRANSFERS)}")
        if transfer in ("nearest", "neighbors") and database.exemplars is None:
            raise DatabaseError(
                "this weight database holds no exemplars; use --transfer cluster, or build it with exemplars"
            )
        self.name, self.top_k = transfer, database.top_k
        self._db, self._cosine = database, database.network.metric == "cosine"
        self._soft = transfer.startswith("soft")
        self.weights = [database.weights_mean]
        if database.fusion is not None:
            self.weights.append(database.fusion.weights_mean)
        if transfer.endswith("contrast") and database.clusters > 1:  # a single one has nothing to be contrasted with
            self.weights = [mean - mean.mean(axis=0) for mean in self.weights]
        self.spread = max(_median(self._closeness(database.distance_quantiles[:, 0]), database.counts), 1e-6)
        self._clusters = Neighbors(database.centroids, database.network.metric)
        exemplars = database.exemplars
        self._exemplars = None
        if exemplars is not None:
            self._exemplars = Neighbors(exemplars.embeddings, database.network.metric, exemplars.partitions)

    def find(self, embeddings: NDArray[np.float32], scale: float = 1.0) -> Found:
        """Look up embeddings.

        Args:
            embeddings: (B, D) float32, finite.
            scale: How many times farther images lie at the size they were looked at in, see
                `WeightDatabase.distance_scale`.

        Returns:
            What lies near.
        """
        clusters, distances = self._clusters.search(embeddings, CLUSTERS if self._soft else 1)
        shares = self._shares(distances / scale) if self._soft else None
        return Found(clusters, distances, shares, self.exemplars_near(embeddings))

    def exemplars_near(self, embeddings: NDArray[np.float32]) -> NDArray[np.int64] | None:
        """Look up training images alone.

        Args:
            embeddings: (B, D) float32, finite.

        Returns:
            (B, n) the nearest exemplars, the nearest first, or None where there are none.
        """
        if self._exemplars is None:
            return None
        return self._exemplars.search(embeddings, _EXEMPLARS if self.name == "neighbors" else 1)[0]

    def choose(self, found: Found, layer: int = 0) -> Chosen:
        """Give each image its channels and weights.

        Args:
            found: From `find`.
            layer: 0 for the feature layer, 1 for the finer one, whose weights are kept of clusters alone.

        Returns:
            At most T channels.
        """
        if layer == 0 and self.name == "cluster":
            nearest = found.clusters[:, 0]
            return Chosen(self._db.top_channels[nearest].astype(np.int64), self._db.top_weights[nearest])
        if layer == 0 and self.name in ("nearest", "neighbors"):
            return self._of_exemplars(found)
        stored = self.weights[layer]
        if found.shares is None:
            return self._strongest(stored[found.clusters[:, 0]])
        return self._strongest(np.einsum("bm,bmk->bk", found.shares, stored[found.clusters]))

    def _of_exemplars(self, found: Found) -> Chosen:
        exemplars, near = self._db.exemplars, found.exemplars
        assert exemplars is not None
        assert near is not None
        if self.name == "nearest":
            return Chosen(exemplars.top_channels[near[:, 0]].astype(np.int64), exemplars.top_weights[near[:, 0]])
        weights = np.zeros((len(near), self._db.network.channels), dtype=np.float32)
        images = np.arange(len(near))[:, None, None]
        np.add.at(weights, (images, exemplars.top_channels[near]), exemplars.top_weights[near] / near.shape[1])
        return self._strongest(weights)

    def _strongest(self, weights: NDArray[np.float32]) -> Chosen:
        channels, strongest = top_channels(weights, self.top_k)
        return Chosen(channels.astype(np.int64), strongest.astype(np.float32))

    def _shares(self, distances: NDArray[np.float32]) -> NDArray[np.float32]:
        closeness = self._closeness(distances)
        shares: NDArray[np.float32] = np.exp((closeness[:, :1] - closeness) / self.spread)
        shares /= shares.sum(axis=1, keepdims=True)
        return shares

    def _closeness(self, distances: NDArray[np.float32]) -> NDArray[np.float32]:
        """Both metrics alike: for embeddings of length 1, half the squared Euclidean distance is 1 - cosine."""
        return distances if self._cosine else (distances * distances / 2).astype(np.float32)


def _median(values: NDArray[np.float32], counts: NDArray[np.int64]) -> float:
    """The median of values that come so many times each, without writing them out: there may be very many."""
    order = np.argsort(values, kind="stable")
    ends = np.cumsum(counts[order].astype(float))
    middle = [np.floor((ends[-1] - 1) / 2), np.ceil((ends[-1] - 1) / 2)]
    places = np.searchsorted(ends, middle, side="right").clip(max=len(order) - 1)
    return float(values[order[places]].mean())
