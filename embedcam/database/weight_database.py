"""The weight database: validated, saved and loaded, and able to rate how usual an image is."""

from __future__ import annotations

import bisect
import difflib
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DatabaseError
from . import store
from .checks import require_valid
from .quantiles import Slopes
from .record import Record, Refinement

# Of the ratio of pixels, so that no distance leaves the range of float32.
_LARGEST_EXPONENT = 6.0


@dataclass(frozen=True, repr=False)
class WeightDatabase(Record):
    """Mean channel weights and strongest channels of each cluster of training images.

    Attributes:
        network: The network it was made for.
        geometry: Where the cells of the feature maps lie at the network's input size.
        method: Name of the channel weighting, such as "gradcam".
        target: What the weights explain: "triplet_margin".
        pairs: Triplets drawn per image; 0 if all were used, or for another target.
        seed: Seed of the k-means, and of the triplets if they were drawn.
        created: UTC, ISO 8601.
        centroids: (C, D) float32.
        counts: (C,) int64, at least 1.
        weights_mean: (C, K) float32.
        weights_std: (C, K) float32.
        top_channels: (C, T) int32, the channels with the largest signed mean weights.
        top_weights: (C, T) float32, their mean weights, strongest first.
        distance_quantiles: (C, 5) float32, quantiles 0.5, 0.9, 0.95, 0.99 and 1 of the distances from the members to
            the nearest centroids of a clustering without them.
        label_names: Names of the classes, or None if the data had no labels.
        label_histogram: (C, L) int64, or None likewise.
        exemplars: The training images, or None if they were not kept.
        refinement: What the default explainer adds, or None for the published method alone.
        embedcam_version: Version of the program that made it.

    Raises:
        DatabaseError: If a shape, an index or a number is not valid.
    """

    def __post_init__(self) -> None:
        require_valid(self)

    @property
    def clusters(self) -> int:
        """Number C of clusters."""
        return len(self.centroids)

    @property
    def top_k(self) -> int:
        """Number T of channels kept per cluster."""
        return int(self.top_channels.shape[1])

    def save(self, path: str | Path) -> None:
        """Write the database as one HDF5 file (format 1), atomically.

        Args:
            path: File to write.

        Raises:
            OutputError: If it cannot be written.
        """
        store.save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> WeightDatabase:
        """Read a database into memory and validate it.

        Args:
            path: A file that `save` wrote.

        Returns:
            The database.

        Raises:
            DatabaseError: If the file is missing, damaged, foreign, newer, inconsistent or too large.
        """
        path = Path(path)
        data = store.read_bytes(path)
        try:
            fields = store.decode(data, path)
            if (source := fields["network"].source) is not None:
                fields["network"] = replace(fields["network"], source=source.seen_from(path.parent))
            return cls(**fields)
        except DatabaseError as error:
            raise DatabaseError(f"{path} is not a readable weight database: {error}") from error

    def labels_of(self, cluster: int, most: int = 3) -> list[tuple[str, int]]:
        """List the most common labels of a cluster.

        Args:
            cluster: Index of the cluster.
            most: Maximum number of labels.

        Returns:
            (name, count), most common first; empty without labels.
        """
        if self.label_histogram is None or self.label_names is None:
            return []
        row = self.label_histogram[cluster]
        order = np.argsort(-row, kind="stable")[:most]
        return [(self.label_names[i], int(row[i])) for i in order if row[i]]

    def clusters_of(self, label: str) -> NDArray[np.int64]:
        """List the clusters of a label.

        Args:
            label: Its name.

        Returns:
            Indices of the clusters in which it is the most common label; if there are none, of the cluster in which
            its share is largest.

        Raises:
            DatabaseError: If no training image has this label.
        """
        if self.label_histogram is None or self.label_names is None:
            raise DatabaseError("this weight database was built without labels; name a cluster instead")
        index = self.label_names.index(label) if label in self.label_names else -1
        if index < 0 or not self.label_histogram[:, index].any():
            close = difflib.get_close_matches(label, self.label_names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "see embedcam inspect"
            raise DatabaseError(f"no training image has the label {label!r}; {hint}")
        clusters = np.flatnonzero(self.label_histogram.argmax(axis=1) == index)
        if len(clusters):
            return clusters
        shares = self.label_histogram[:, index] / np.maximum(self.label_histogram.sum(axis=1), 1)
        return np.array([shares.argmax()], dtype=np.int64)

    def describe(self, cluster: int) -> str:
        """Name a cluster by its index and its most common label.

        Args:
            cluster: Its index.

        Returns:
            Such as "cluster 3 of monarch"; without labels "cluster 3".
        """
        labels = self.labels_of(cluster, 1)
        return f"cluster {cluster} of {labels[0][0]}" if labels else f"cluster {cluster}"

    def facts(self) -> list[tuple[str, str]]:
        """Summarise the database in a few lines.

        Returns:
            (name, value) of each line.
        """
        net, counts, target = self.network, self.counts, self.target.replace("_", " ")
        stride, center = _pair(self.geometry.cell_stride, " x "), _pair(self.geometry.first_cell_center, ", ")
        if self.target == "triplet_margin":
            target += f", {self.pairs or 'all'} triplets per image"
        smallest, largest, images = int(counts.min()), int(counts.max()), int(counts.sum())
        return [
            ("Network", f"{net.architecture}, {net.metric}, {net.dim} dimensions, sha256 {net.sha256[:12]}"),
            *([] if net.source is None else [("Loaded from", str(net.source))]),
            ("Input", str(net.preprocess)),
            ("Feature layer", f"{net.layer}, {net.channels} channels on {_pair(net.map_size, ' x ')} cells"),
            ("Cells", f"every {stride} pixels, the first at ({center})"),
            ("Weights", f"{self.method} of the {target}, top {self.top_k} channels"),
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
        from ..show.notebook import database_html  # drawing libraries, which only notebooks need

        return database_html(self)

    def distance_scale(self, size: tuple[Any, Any]) -> Any:
        """Estimate the factor by which distances to centroids grow at another input size.

        The factor is measured at the size of `refinement`, and assumed to be a power of the number of pixels.

        Args:
            size: (H, W) in pixels, two numbers or two tensors.

        Returns:
            A number or a tensor; 1 at the network's own input size.
        """
        height, width = self.network.preprocess.input_size
        return (size[0] * size[1] / (height * width)) ** self._distance_exponent

    @cached_property
    def _distance_exponent(self) -> float:
        if self.refinement is None or self.refinement.input_size == self.network.preprocess.input_size:
            return 0.0
        own, refined = (h * w for h, w in (self.network.preprocess.input_size, self.refinement.input_size))
        exponent = math.log(self.refinement.distance_scale) / math.log(refined / own) if refined != own else 0.0
        return max(-_LARGEST_EXPONENT, min(exponent, _LARGEST_EXPONENT))

    def typicality(self, clusters: NDArray[np.int64], distances: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rate how usual images are for their clusters.

        Args:
            clusters: (B,) indices.
            distances: (B,) to the centroids of those clusters.

        Returns:
            (B,) in [0, 1]: share of the cluster's training images that are at least as far from a centroid,
            interpolated between the stored quantiles; 0 beyond the farthest.
        """
        share: NDArray[np.float64] = Slopes.of(self.distance_quantiles).beyond(clusters, distances.astype(float))
        return share.astype(np.float32)

    def anomaly(self, distances: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rate how unlike the training images others are: the distance relative to `far_distance`.

        Args:
            distances: (B,) to the nearest centroids.

        Returns:
            (B,) not negative; above 1, an image is farther out than 99 % of the training images.
        """
        return np.asarray(distances / self.far_distance, dtype=np.float32)

    @cached_property
    def far_distance(self) -> float:
        """The distance beyond which 1 % of all training images lie from their centroids.

        It is taken over all clusters together: single clusters are too small for such a quantile.
        """
        slopes, share = Slopes.of(self.distance_quantiles), 0.01
        clusters, steps = np.arange(self.clusters), np.unique(self.distance_quantiles.astype(float))

        def beyond(step: int) -> float:
            return float(np.average(slopes.beyond(clusters, np.full(self.clusters, steps[step])), weights=self.counts))

        # The share falls from step to step, so bisection finds the last step whose share is large enough.
        last = bisect.bisect_right(range(len(steps)), -share, key=lambda step: -beyond(step)) - 1
        pair = [max(last, 0), min(last + 1, len(steps) - 1)]
        distance = float(np.interp(-share, [-beyond(step) for step in pair], steps[pair]))
        return max(distance, 1e-6)  # if all distances are zero, rounding errors must not count as anomalies


def _explained(refinement: Refinement | None) -> str:
    if refinement is None:
        return "at the input's size, by the feature layer alone"
    fusion = refinement.fusion
    fused = f", fused with {fusion.layer}" if fusion is not None else ""
    return f"at {' x '.join(map(str, refinement.input_size))} pixels{fused}"


def _pair(values: tuple[float, float], between: str) -> str:
    return between.join(f"{value:g}" for value in values)
