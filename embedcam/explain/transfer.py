"""Weight transfer: from where an embedding lies to channel weights, by looking up what is stored."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..database.record import top_channels
from ..database.weight_database import WeightDatabase
from ..errors import DatabaseError
from ..registry import Registry

# How many clusters are mixed, and how many exemplars averaged; farther ones have next to no share.
_CLUSTERS, _EXEMPLARS = 10, 10


class Lookup(NamedTuple):
    """Where embeddings lie among what is stored.

    Attributes:
        embeddings: (B, D); zero where they are not finite.
        similarities: (B, C) to the centroids: the cosine, or minus half the squared distance.
        clusters: (B,) index of the nearest cluster.
        scale: How many times farther images of this size lie from their centroids, see
            `WeightDatabase.distance_scale`.
        exemplars: (B, n) index of the nearest exemplars, the nearest first; None unless the transfer asks for them.
    """

    embeddings: Tensor
    similarities: Tensor
    clusters: Tensor
    scale: float | Tensor
    exemplars: Tensor | None = None


class Transfer(nn.Module, ABC):
    """Gives images the channel weights that are stored of the training images near them.

    Subclasses define `forward`, and register themselves in `TRANSFERS`.

    Args:
        database: What is stored.

    Attributes:
        exemplars: How many of the nearest exemplars `forward` needs; 0 for none.
    """

    exemplars = 0

    def __init__(self, database: WeightDatabase) -> None:
        super().__init__()
        self.database = database

    @abstractmethod
    def forward(self, lookup: Lookup, layer: int) -> Tensor:
        """Choose channel weights.

        Args:
            lookup: Where the embeddings lie.
            layer: 0 for the feature layer, 1 for the finer layer of `database.fusion`.

        Returns:
            (B, K), zero for channels that are left out.
        """


TRANSFERS: Registry[Callable[[WeightDatabase], Transfer]] = Registry("transfer", "embedcam.transfers", DatabaseError)


class ClusterTransfer(Transfer):
    """The mean weights of the nearest clusters; of these, the strongest `top_k` channels.

    Args:
        database: What is stored.
        soft: Mix the 10 nearest clusters' weights in shares of exp(-d / t), with the distance d (half its square for
            Euclidean networks) and t that of the median training image. Otherwise the nearest cluster's are taken.
        contrast: Subtract the mean over all clusters.

    Source:
        Chen et al. 2020 (arXiv 2001.06538), section 4, for the nearest cluster without contrast.
    """

    def __init__(self, database: WeightDatabase, *, soft: bool = False, contrast: bool = False) -> None:
        super().__init__(database)
        self._soft = soft
        tables = [database.weights_mean]
        if database.fusion is not None and database.fusion.weights_mean is not None:
            tables.append(database.fusion.weights_mean)
        for layer, table in enumerate(tables):
            if contrast and database.clusters > 1:  # with a single one nothing would be left
                table = table - table.mean(axis=0)
            if not soft:
                table = _strongest(table, database.top_k)
                if layer == 0 and not contrast:  # also of a database that another program made
                    table = _dense(database.top_channels, database.top_weights, table.shape[1])
            self.register_buffer(f"weights_{layer}", torch.from_numpy(table), persistent=False)
        quantiles = database.distance_quantiles[:, 0]
        closeness = quantiles if database.network.metric == "cosine" else quantiles * quantiles / 2
        self._spread = max(_weighted_median(closeness, database.counts), 1e-6)

    def forward(self, lookup: Lookup, layer: int) -> Tensor:
        """Choose channel weights.

        Args:
            lookup: Where the embeddings lie.
            layer: 0 for the feature layer, 1 for the finer one.

        Returns:
            (B, K), all but the `top_k` strongest zero; more where weights are equal.
        """
        table = self.get_buffer(f"weights_{layer}")
        if not self._soft:
            return table[lookup.clusters]
        mixed = self._shares(lookup) @ table
        # Not by the indices of topk: of equal weights, every runtime picks others.
        weakest = mixed.topk(min(self.database.top_k, mixed.shape[1]), dim=1).values[:, -1:]
        return mixed.where(mixed >= weakest, 0.0)

    def _shares(self, lookup: Lookup) -> Tensor:
        similarities = lookup.similarities
        nearest = similarities.topk(min(_CLUSTERS, similarities.shape[1]), dim=1).values
        scale = lookup.scale if self.database.network.metric == "cosine" else lookup.scale * lookup.scale
        # Subtracted first: what follows may multiply by a large number.
        behind = (similarities - nearest[:, :1]) * (1 / (self._spread * scale))
        return behind.where(similarities >= nearest[:, -1:], -math.inf).softmax(dim=1)


class ExemplarTransfer(ClusterTransfer):
    """The mean weights of the nearest training images; at the finer layer, those of the nearest cluster.

    Args:
        database: With exemplars.
        exemplars: How many training images.

    Raises:
        DatabaseError: If the database has no exemplars.

    Source:
        Chen et al. 2020 (arXiv 2001.06538), section 4, for the nearest one.
    """

    def __init__(self, database: WeightDatabase, exemplars: int) -> None:
        super().__init__(database)
        if database.exemplars is None:
            raise DatabaseError(
                "this weight database holds no exemplars; use --transfer cluster, or build it with exemplars"
            )
        self.exemplars = exemplars

    def forward(self, lookup: Lookup, layer: int) -> Tensor:
        """Choose channel weights.

        Args:
            lookup: Where the embeddings lie, with exemplars.
            layer: 0 for the feature layer, 1 for the finer one.

        Returns:
            (B, K), at most `top_k` of each row not zero.
        """
        if layer > 0:
            return super().forward(lookup, layer)
        stored, nearest = self.database.exemplars, lookup.exemplars
        assert stored is not None
        assert nearest is not None
        indices = nearest.cpu().numpy()
        # Read here rather than kept as buffers: of millions of images there would be a second copy.
        channels = stored.top_channels[indices].reshape(len(indices), -1)
        weights = stored.top_weights[indices].reshape(len(indices), -1) / np.float32(indices.shape[1])
        mean = _dense(channels, weights, self.database.network.channels)
        return torch.from_numpy(_strongest(mean, self.database.top_k)).to(lookup.embeddings.device)


TRANSFERS.register("soft-contrast")(partial(ClusterTransfer, soft=True, contrast=True))
TRANSFERS.register("soft")(partial(ClusterTransfer, soft=True))
TRANSFERS.register("contrast")(partial(ClusterTransfer, contrast=True))
TRANSFERS.register("cluster")(ClusterTransfer)
TRANSFERS.register("neighbors")(partial(ExemplarTransfer, exemplars=_EXEMPLARS))
TRANSFERS.register("nearest")(partial(ExemplarTransfer, exemplars=1))


def _strongest(weights: NDArray[np.float32], top_k: int) -> NDArray[np.float32]:
    return _dense(*top_channels(weights, top_k), weights.shape[1])


def _dense(channels: NDArray[np.int32], weights: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    dense = np.zeros((len(channels), width), dtype=np.float32)
    np.add.at(dense, (np.arange(len(channels))[:, None], channels), weights)  # a channel may come several times
    return dense


def _weighted_median(values: NDArray[np.floating], counts: NDArray[np.int64]) -> float:
    """Take the median of values that come `counts` times each, without repeating them: there may be very many."""
    order = np.argsort(values, kind="stable")
    ends = np.cumsum(counts[order].astype(float))
    middle = [np.floor((ends[-1] - 1) / 2), np.ceil((ends[-1] - 1) / 2)]
    indices = np.searchsorted(ends, middle, side="right").clip(max=len(order) - 1)
    return float(values[order[indices]].mean())
