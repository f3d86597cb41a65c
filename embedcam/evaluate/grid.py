"""Grid test: does a map that is asked for one of four pictures in one image mark that picture?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.samples import Samples
from ..database.neighbors import Neighbors
from ..database.weight_database import WeightDatabase
from ..errors import DataError
from ..nets import layers
from ..nets.network import Network
from ..show.report import Column
from ..utils.progress import counting
from .bootstrap import interval

Ask = Callable[[Tensor, Tensor], NDArray[np.float32]]
"""From images (B, 3, H, W) and T questions about each to maps (B, T, H, W), of which the positive part is heat.

The questions are clusters, int64 (B, T), or embeddings of partner images, float32 (B, T, D).
"""

BY = ("cluster", "partner")
"""What methods can be asked for."""
SHARE = Column("grid_share", "Grid share", "share of the heat in the quarter that is asked for; chance is 0.25")
LOCALISED = Column("grid_localised", "Grid localised", "share of maps with more than half of the heat there")
BY_PARTNER = Column("grid_share_partner", "Grid by partner", "the same, asked for by an image of the same class")
COLUMNS = (SHARE, LOCALISED, BY_PARTNER)


@dataclass(frozen=True)
class Composites:
    """Images of 2 x 2 pictures of four different classes, each picture at the network's input size.

    Attributes:
        net: The network, whose preprocessing is used.
        samples: The pictures.
        members: int64 (G, 4) indices of the pictures: top left, top right, bottom left, bottom right.
    """

    net: Network
    samples: Samples
    members: NDArray[np.int64]

    @classmethod
    def draw(cls, net: Network, samples: Samples, count: int, seed: int = 0) -> Composites:
        """Draw four different classes for each composite, and a picture of each.

        Args:
            net: The network.
            samples: Labelled pictures.
            count: Number G of composites, at least 1.
            seed: Of the draw.

        Returns:
            The composites.

        Raises:
            DataError: If there are no labels, fewer than four classes, or `count` is below 1.
        """
        if count < 1:
            raise DataError(f"the grid test needs at least 1 composite, got {count}; 100 are usual")
        classes = np.unique([] if samples.labels is None else samples.labels)
        if samples.labels is None or len(classes) < 4:
            raise DataError(
                f"the grid test needs labelled images of at least 4 classes, found {len(classes)}; leave --grid out"
            )
        rng, labels = np.random.default_rng(seed), samples.labels
        members = [
            [rng.choice(np.flatnonzero(labels == label)) for label in rng.choice(classes, 4, replace=False)]
            for _ in range(count)
        ]
        return cls(net, samples, np.array(members, dtype=np.int64))

    @property
    def labels(self) -> NDArray[np.int64]:
        """(G, 4) of the pictures."""
        assert self.samples.labels is not None
        return self.samples.labels[self.members]

    def batches(self, size: int = 4) -> Iterator[Tensor]:
        """Read the composites.

        Args:
            size: Composites per batch.

        Yields:
            (b, 3, 2 H, 2 W) on the network's device.
        """
        for start in range(0, len(self.members), size):
            quarters = [self._read(column) for column in self.members[start : start + size].T]
            rows = [torch.cat(quarters[row : row + 2], dim=3) for row in (0, 2)]
            yield torch.cat(rows, dim=2)

    @cached_property
    def embeddings(self) -> NDArray[np.float32]:
        """(G, 4, D) embeddings of the pictures alone."""
        pictures, inverse = np.unique(self.members, return_inverse=True)
        with layers.evaluating(self.net), torch.inference_mode():
            parts = [self.net(self._read(part)).cpu() for part in np.array_split(pictures, -(-len(pictures) // 16))]
        embedded: NDArray[np.float32] = torch.cat(parts).numpy()[inverse.reshape(self.members.shape)]
        return embedded

    def clusters(self, database: WeightDatabase) -> NDArray[np.int64]:
        """Find the nearest cluster of each picture alone.

        Args:
            database: Of the same network.

        Returns:
            (G, 4).
        """
        embeddings = self.embeddings.reshape(-1, self.net.dim)
        nearest, _ = Neighbors(database.centroids, self.net.metric).nearest(embeddings)
        return nearest.reshape(self.members.shape)

    def partners(self, labels: NDArray[np.int64], seed: int = 0) -> NDArray[np.int64]:
        """Draw an image of the same class for each picture.

        Args:
            labels: (M,) of the images to draw from, with every class of the pictures.
            seed: Of the draw.

        Returns:
            (G, 4) indices into `labels`.
        """
        rng = np.random.default_rng(seed)
        return np.array([[rng.choice(np.flatnonzero(labels == label)) for label in row] for row in self.labels])

    def _read(self, indices: NDArray[np.int64]) -> Tensor:
        pictures = np.stack([self.net.preprocess(self.samples.image(int(index))) for index in indices])
        return layers.as_input(self.net, torch.from_numpy(pictures))


def grid_test(
    asks: Mapping[str, Ask], composites: Composites, questions: NDArray[Any], *, batch_size: int = 4
) -> dict[str, dict[str, Any]]:
    """Ask methods for each of the four pictures of every composite.

    Args:
        asks: By name.
        composites: The images.
        questions: About each picture: its cluster, int64 (G, 4), or a partner's embedding, float32 (G, 4, D).
        batch_size: Composites per batch.

    Returns:
        By name, `grid_share`: the share of the positive heat in the quarter of the picture that is asked for, averaged
        over all four pictures and all composites (a map without heat scores 0; chance is 0.25); `grid_localised`: the
        share of maps with more than half of it there; and `interval`, the 95 % interval of either over composites.

    Raises:
        DataError: If a method's maps are not finite or have another shape.
    """
    shares: dict[str, list[NDArray[np.float64]]] = {name: [] for name in asks}
    start = 0
    with counting("grid test", len(composites.members)) as count:
        for images in composites.batches(batch_size):
            asked = torch.from_numpy(questions[start : start + len(images)]).to(images.device)
            for name, ask in asks.items():
                maps = np.asarray(ask(images, asked))
                if maps.shape != (len(images), 4, *images.shape[2:]) or not np.isfinite(maps).all():
                    raise DataError(
                        f"{name} must give finite maps {(len(images), 4, *images.shape[2:])}, got {maps.shape}"
                    )
                shares[name].append(_share_of_own_quarter(maps))
            start += len(images)
            count(len(images))
    return {name: _summary(np.concatenate(parts)) for name, parts in shares.items()}


def _share_of_own_quarter(maps: NDArray[np.float32]) -> NDArray[np.float64]:
    """Give (B, 4): of the map that is asked for quarter q, the share of the heat in quarter q."""
    batch, _, height, width = maps.shape
    heat = maps.clip(min=0).reshape(batch, 4, 2, height // 2, 2, width // 2).sum(axis=(3, 5), dtype=np.float64)
    quarters = heat.reshape(batch, 4, 4)
    shares: NDArray[np.float64] = np.einsum("bqq->bq", quarters) / np.maximum(
        quarters.sum(axis=2), np.finfo(float).tiny
    )
    return shares


def _summary(shares: NDArray[np.float64]) -> dict[str, Any]:
    # The four maps of a composite are not independent of each other: composites are resampled.
    values = {SHARE.key: shares.mean(axis=1), LOCALISED.key: (shares > 0.5).mean(axis=1)}
    means = {key: float(value.mean()) for key, value in values.items()}
    return {**means, "interval": {key: interval(value) for key, value in values.items()}}
