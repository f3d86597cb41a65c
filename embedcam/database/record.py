"""What a weight database holds, and what must be true of it."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.preprocess import Preprocess
from ..errors import DatabaseError
from ..nets.geometry import Geometry
from .neighbors import Cells

QUANTILES = (0.5, 0.9, 0.95, 0.99, 1.0)
# Of e: a distance times that is still a float32.
_LARGEST_POWER = 40.0


@dataclass(frozen=True)
class NetworkRecord:
    """Which network a database was made for.

    Attributes:
        sha256: Fingerprint of the network's parameters and buffers.
        architecture: The backbone's name, or a wrapped module's class.
        layer: Dotted name of the feature layer.
        channels: K of that layer.
        dim: D of the embedding.
        metric: "cosine" or "euclidean".
        preprocess: From a picture to an input.
    """

    sha256: str
    architecture: str
    layer: str
    channels: int
    dim: int
    metric: str
    preprocess: Preprocess

    @classmethod
    def of(cls, net: Any) -> NetworkRecord:
        """Describe a network.

        Args:
            net: A `nets.Network`.

        Returns:
            Its record.
        """
        return cls(net.sha256(), net.architecture, net.layer, net.channels, net.dim, net.metric, net.preprocess)

    def require_same(self, net: NetworkRecord) -> None:
        """Refuse a network that the database was not made for.

        Args:
            net: The record of the network at hand.

        Raises:
            DatabaseError: If anything differs; the message names all that does.
        """
        differs = [
            f"{name} {_short(ours)} in the database, {_short(theirs)} in the network"
            for name in (item.name for item in fields(self))
            if (ours := getattr(self, name)) != (theirs := getattr(net, name))
        ]
        if differs:
            raise DatabaseError(
                f"the weight database was made for another network: {'; '.join(differs)}; "
                "use the network it was built with, or build a database for this one"
            )


def _short(value: object) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)


@dataclass(frozen=True, repr=False)
class Exemplars:
    """The training images one by one, for nearest-exemplar transfer and "looks like" pictures.

    Attributes:
        embeddings: (N, D) float32.
        top_channels: (N, T) int32.
        top_weights: (N, T) float32, strongest first.
        cluster: (N,) int64.
        label: (N,) int64 into the database's label names; -1 where unknown.
        path: N names, relative to the data set.
        cells: Of very many, for a quick search; None where an exact one is quick enough.
    """

    embeddings: NDArray[np.float32]
    top_channels: NDArray[np.int32]
    top_weights: NDArray[np.float32]
    cluster: NDArray[np.int64]
    label: NDArray[np.int64]
    path: tuple[str, ...]
    cells: Cells | None = None

    def __len__(self) -> int:
        return len(self.embeddings)

    def __repr__(self) -> str:
        return f"<{len(self)} exemplars>"


@dataclass(frozen=True)
class Fusion:
    """A second, finer layer, whose maps sharpen those of the feature layer.

    Attributes:
        layer: Dotted name of the finer layer.
        geometry: Where its cells sit.
        weights_mean: (C, K') float32: its mean channel weights, of a sample of each cluster's images.
    """

    layer: str
    geometry: Geometry
    weights_mean: NDArray[np.float32]


@dataclass(frozen=True)
class Refinement:
    """What the default explainer adds to the published method: a refinement, and a second layer where there is one.

    Attributes:
        input_size: (H, W) at which images are explained best.
        distance_scale: How many times farther from their centroids images lie when looked at in that size.
        fusion: The finer layer, or None where the network has none.
    """

    input_size: tuple[int, int]
    distance_scale: float
    fusion: Fusion | None = None


def top_channels(weights: NDArray[np.float32], top_k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Pick the channels of largest weight, by signed value, as Faster-Grad-CAM does.

    Args:
        weights: (N, K).
        top_k: T, at most K.

    Returns:
        Channels (N, T) and their weights (N, T), strongest first; of equal ones the lower index first.
    """
    channels = np.argsort(-weights, axis=1, kind="stable")[:, :top_k].astype(np.int32)
    return channels, np.take_along_axis(weights, channels.astype(np.int64), axis=1)


@dataclass(frozen=True, repr=False)
class WeightDatabase:
    """Per cluster of training images: the mean channel weights and the strongest channels.

    Attributes:
        network: The network it was made for.
        geometry: Where that network's feature-map cells sit at its input size.
        method: Name of the channel weighting, such as "gradcam".
        target: What the weights explain: "triplet_margin".
        pairs: Triplets an image.
        seed: Of the partners and the k-means.
        created: UTC, ISO 8601.
        centroids: (C, D) float32.
        counts: (C,) int64, at least 1.
        weights_mean: (C, K) float32.
        weights_std: (C, K) float32.
        top_channels: (C, T) int32: the channels of largest mean weight, by signed value.
        top_weights: (C, T) float32: their mean weights, strongest first.
        distance_quantiles: (C, 5) float32: the members' distances to the centroid at 0.5, 0.9, 0.95, 0.99 and 1.
        label_names: The classes' names, or None when the data had no labels.
        label_histogram: (C, L) int64, or None likewise.
        exemplars: The training images, or None when they were not kept.
        refinement: What the default explainer uses beside all that, or None for the published method alone.
        embedcam_version: Of the program that made it.
    """

    network: NetworkRecord
    geometry: Geometry
    method: str
    target: str
    pairs: int
    seed: int
    created: str
    centroids: NDArray[np.float32]
    counts: NDArray[np.int64]
    weights_mean: NDArray[np.float32]
    weights_std: NDArray[np.float32]
    top_channels: NDArray[np.int32]
    top_weights: NDArray[np.float32]
    distance_quantiles: NDArray[np.float32]
    label_names: tuple[str, ...] | None = None
    label_histogram: NDArray[np.int64] | None = None
    exemplars: Exemplars | None = None
    refinement: Refinement | None = None
    embedcam_version: str = ""

    def __post_init__(self) -> None:
        _validate(self)

    @property
    def clusters(self) -> int:
        """Number C of clusters."""
        return len(self.centroids)

    @property
    def fusion(self) -> Fusion | None:
        """The finer layer, or None where there is none."""
        return None if self.refinement is None else self.refinement.fusion

    @property
    def top_k(self) -> int:
        """Number T of channels kept of each cluster."""
        return int(self.top_channels.shape[1])

    def save(self, path: str | Path) -> None:
        """Write the database as one HDF5 file (format 1), whole or not at all.

        Args:
            path: Where to.

        Raises:
            OutputError: If it cannot be written.
        """
        from .store import save

        save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> WeightDatabase:
        """Read a database completely into memory, and check it.

        Args:
            path: A file that `save` wrote.

        Returns:
            The database.

        Raises:
            DatabaseError: If the file is missing, damaged, foreign, newer, or inconsistent.
        """
        from .store import load

        return load(path)

    def labels_of(self, cluster: int, most: int = 3) -> list[tuple[str, int]]:
        """List the commonest labels of a cluster.

        Args:
            cluster: Its index.
            most: How many at most.

        Returns:
            (name, count), the commonest first; empty without labels.
        """
        if self.label_histogram is None or self.label_names is None:
            return []
        row = self.label_histogram[cluster]
        order = np.argsort(-row, kind="stable")[:most]
        return [(self.label_names[i], int(row[i])) for i in order if row[i]]

    def facts(self) -> list[tuple[str, str]]:
        """Say in a few lines what this database is.

        Returns:
            (name, value), to be printed.
        """
        net, counts, target = self.network, self.counts, self.target.replace("_", " ")
        stride, center = _pair(self.geometry.cell_stride, " x "), _pair(self.geometry.first_cell_center, ", ")
        size = " x ".join(map(str, net.preprocess.input_size))
        smallest, largest, images = int(counts.min()), int(counts.max()), int(counts.sum())
        return [
            ("Network", f"{net.architecture}, {net.metric}, {net.dim} dimensions, sha256 {net.sha256[:12]}"),
            ("Input", f"{size} pixels, {net.preprocess.interpolation}"),
            ("Feature layer", f"{net.layer}, {net.channels} channels"),
            ("Cells", f"every {stride} pixels, the first at ({center})"),
            ("Weights", f"{self.method} of the {target}, {self.pairs} pairs an image, top {self.top_k} channels"),
            ("Explained", _explained(self.refinement)),
            ("Clusters", f"{self.clusters}, of {images} images ({smallest} to {largest} each)"),
            ("Labels", "none" if self.label_names is None else f"{len(self.label_names)}"),
            ("Exemplars", "not kept" if self.exemplars is None else f"{len(self.exemplars)}"),
            ("Made", f"{self.created} by embedcam {self.embedcam_version}, seed {self.seed}"),
        ]

    def __repr__(self) -> str:
        net, images = self.network, int(self.counts.sum())
        return f"<WeightDatabase of {net.architecture} at {net.layer}: {self.clusters} clusters of {images} images>"

    def _repr_html_(self) -> str:
        from ..show.notebook import database_html

        return database_html(self)

    def distance_scale(self, size: tuple[int, int]) -> float:
        """Say how many times farther from their centroids images lie when looked at in another size.

        Measured at the size of `refinement`, and taken to grow evenly with the logarithm of the side between that size
        and the one the network was trained at.

        Args:
            size: (H, W) in pixels.

        Returns:
            1 at the network's own input size.
        """
        if self.refinement is None:
            return 1.0
        own, fused, wanted = (
            math.log(h * w) for h, w in (self.network.preprocess.input_size, self.refinement.input_size, size)
        )
        share = (wanted - own) / (fused - own) if fused != own else 0.0
        power = share * math.log(self.refinement.distance_scale)
        return math.exp(max(-_LARGEST_POWER, min(power, _LARGEST_POWER)))

    def typicality(self, clusters: NDArray[np.int64], distances: NDArray[np.float32]) -> NDArray[np.float32]:
        """Say how usual images are for their clusters.

        Args:
            clusters: (B,) indices.
            distances: (B,) to those clusters' centroids.

        Returns:
            (B,) in [0, 1]: the share of the cluster's training images that lie at least as far out, interpolated
            between the stored quantiles; 0 beyond the farthest.
        """
        rows = self.distance_quantiles[clusters].astype(float)
        return _shares_beyond(distances.astype(float), rows).astype(np.float32)

    def anomaly(self, distances: NDArray[np.float32]) -> NDArray[np.float32]:
        """Say how unlike all training images others are: the distance, in units of the outermost 1 % of those.

        Clusters are small, and the farthest member of one says little; so all are taken together here.

        Args:
            distances: (B,) to the nearest centroids.

        Returns:
            (B,) not negative; above 1 an image is farther out than 99 % of the training images.
        """
        # Where they all lie in their centroids, rounding alone is no anomaly.
        return np.asarray(distances / max(self._far_distance, 1e-6), dtype=np.float32)

    @cached_property
    def _far_distance(self) -> float:
        """The distance beyond which 1 % of all training images lie from their centroids, from the stored quantiles."""
        rows, least = self.distance_quantiles.astype(float), 0.01
        steps = np.unique(rows)

        def beyond(step: int) -> float:
            return float(np.average(_shares_beyond(np.full(len(rows), steps[step]), rows), weights=self.counts))

        # The share falls from step to step: halving finds the last that is large enough, however many clusters.
        last = bisect.bisect_right(range(len(steps)), -least, key=lambda step: -beyond(step)) - 1
        pair = [max(last, 0), min(last + 1, len(steps) - 1)]
        return float(np.interp(-least, [-beyond(step) for step in pair], steps[pair]))


def _shares_beyond(distances: NDArray[np.float64], quantiles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate the share of a cluster's images that lie at least so far out: (B,), for rows (B, 5) of quantiles."""
    rows = np.concatenate([np.zeros((len(quantiles), 1)), quantiles], axis=1)
    shares = np.array([1.0, *(1 - q for q in QUANTILES)])
    below = ((rows <= distances[:, None]).sum(axis=1) - 1).clip(0, len(QUANTILES) - 1)
    near, far = (rows[np.arange(len(rows)), place] for place in (below, below + 1))
    part = (distances - near) / np.where(far > near, far - near, 1.0)
    found = np.where(distances < rows[:, -1], shares[below] + part * np.diff(shares)[below], 0.0)
    # At equal distances (a cluster of one image) the largest share holds, and rounding must not decide it.
    return np.where(distances <= rows[:, 1] * 1e-6 + 1e-6, 1.0, found)


def _explained(refinement: Refinement | None) -> str:
    if refinement is None:
        return "at the input's size, by the feature layer alone"
    fusion = refinement.fusion
    fused = f", fused with {fusion.layer}, {fusion.weights_mean.shape[1]} channels" if fusion is not None else ""
    return f"at {' x '.join(map(str, refinement.input_size))} pixels{fused}"


def _pair(values: tuple[float, float], between: str) -> str:
    return between.join(f"{value:g}" for value in values)


def _validate(db: WeightDatabase) -> None:
    """Check every shape, index and number.

    Raises:
        DatabaseError: Naming the item, what was expected and what was found.
    """
    from .checks import contents, forms

    for item, true, expected, found in chain(forms(db), contents(db)):
        if not true:
            raise DatabaseError(f"{item}: expected {expected}, found {found}; the database is damaged, build it again")
