"""The steps from images to a weight database."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._version import __version__
from ..data.samples import Samples
from ..database.neighbors import Neighbors, partition, searchable
from ..database.record import Exemplars, NetworkRecord, top_channels
from ..database.weight_database import WeightDatabase
from ..errors import DataError, UnreadableError
from ..explain.grad_weights import direction, grad_weights, weigh
from ..explain.weighting import WEIGHTINGS
from ..nets import layers, receptive_field
from ..nets.embedding import EmbeddingNet
from ..nets.inference import Embedded, embed, tensor_batches
from ..nets.network import Network
from ..utils.distributed import Group
from ..utils.files import atomic_path
from ..utils.progress import counting
from . import clusters as clustering
from .refinement import measure_refinement
from .shards import Rows, Shards
from .triplets import Partners

# k-means needs no more than this many embeddings, or so many a cluster; of more images, a sample is clustered.
_SAMPLE, _SAMPLE_OF_CLUSTER = 2**15, 256
_DATABASE = "database.h5"


@dataclass(frozen=True)
class BuildOptions:
    """What a database depends on beside network and images; see `build_database`."""

    clusters: int
    top_k: int
    pairs: int
    method: str
    exemplars: bool
    refinement: bool
    seed: int
    batch_size: int


class Build:
    """The steps of a build. Their results are files, so that each is done once, by whichever process.

    Args:
        net: The network.
        samples: The training images.
        shards: Where results go.
        group: The processes that share the work.
        options: What the database depends on.
        strict: Raise on an unreadable image instead of leaving it out with a warning.
        workers: Threads that read images ahead.
    """

    def __init__(
        self,
        net: Network,
        samples: Samples,
        shards: Shards,
        group: Group,
        options: BuildOptions,
        *,
        strict: bool,
        workers: int,
    ) -> None:
        self.net, self.samples, self.shards, self.group, self.options = net, samples, shards, group, options
        self.strict = strict
        self.reading: dict[str, Any] = {"batch_size": options.batch_size, "workers": workers}

    def run(self, embedded: Embedded | None = None) -> WeightDatabase:
        """Do what is not done yet.

        Args:
            embedded: What is known of the images already.

        Returns:
            The database.
        """
        for step in (lambda: self.embed(embedded), self.gather, self.weigh):
            step()
            self.group.wait()
        return self.finish()

    def embed(self, embedded: Embedded | None) -> None:
        """Step 1, of each shard: embeddings and pooled features."""
        with self._counting("embedding", "embedded") as count:
            for number in self.shards.unfinished("embedded"):
                rows = self.shards.rows(number)
                seen = self._seen(rows, count) if embedded is None else _part(embedded, rows)
                pooled = {} if seen.pooled is None else {"pooled": seen.pooled}
                known = np.array(seen.pooled is not None)
                self.shards.write("embedded", number, kept=seen.kept, embeddings=seen.embeddings, known=known, **pooled)

    def _seen(self, rows: range, count: Any) -> Embedded:
        try:
            seen = embed(self.net, self.samples.subset(rows), strict=self.strict, count=count, **self.reading)
        except UnreadableError:
            nothing = np.empty(0, dtype=np.int64)  # not one image of this shard can be read, as the warnings say
            return Embedded(
                nothing, np.empty((0, self.net.dim), np.float32), np.empty((0, self.net.channels), np.float32)
            )
        wrong = np.flatnonzero(~searchable(seen.embeddings))
        if len(wrong):
            name = self.samples.ids[rows[int(seen.kept[wrong[0]])]]
            raise DataError(
                f"the embedding of {name} is not finite, or too long to be compared; check the network and its training"
            )
        return Embedded(seen.kept + rows.start, seen.embeddings, seen.pooled)

    def gather(self) -> None:
        """Step 2, once: all embeddings in one file, their clusters, and whether a vector stands for a whole map."""
        if not self.group.main or self.shards.done("gathered"):
            return
        kept, pooled = [], True
        with atomic_path(self._embeddings_path) as temporary, temporary.open("wb") as file:
            for number in range(len(self.shards)):
                seen = self.shards.read("embedded", number, "kept", "embeddings", "known")  # not the pooled features
                seen["embeddings"].tofile(file)
                kept.append(seen["kept"])
                pooled &= bool(seen["known"])
        bounds = np.cumsum([0, *map(len, kept)])
        count = int(bounds[-1])
        if count == 0:
            raise DataError(f"none of the {len(self.samples)} images can be read; see the warnings above")
        size = max(_SAMPLE, _SAMPLE_OF_CLUSTER * self.options.clusters)
        chosen = np.arange(count)
        if count > size:
            chosen = np.sort(np.random.default_rng(self.options.seed % 2**63).choice(count, size, replace=False))
        centroids, _, _ = clustering.kmeans(
            self._embeddings[chosen], self.options.clusters, self.net.metric, self.options.seed
        )
        index = Neighbors(centroids, self.net.metric)
        parts = (self.shards.read("embedded", number, "embeddings") for number in range(len(self.shards)))
        found = [index.nearest(part["embeddings"]) for part in parts]
        self.shards.write(
            "gathered",
            kept=np.concatenate(kept),
            bounds=bounds,
            centroids=centroids,
            cluster=np.concatenate([cluster for cluster, _ in found]),
            distance=np.concatenate([distance for _, distance in found]),
            pooled=np.array(pooled),
        )

    def weigh(self) -> None:
        """Step 3, of each shard: channel weights, summed over each cluster, and the strongest of each image."""
        gathered = self._gathered
        with self._counting("weighing", "weighed") as count:
            for number in self.shards.unfinished("weighed"):
                start, end = gathered["bounds"][number : number + 2]
                weights = self._weights(number, np.arange(start, end), count)
                moments = clustering.Moments(len(gathered["centroids"]), self.net.channels)
                moments.add(gathered["cluster"][start:end], weights)
                own: dict[str, NDArray[Any]] = {}
                if self.options.exemplars:
                    own["channels"], own["strongest"] = top_channels(weights, self.options.top_k)
                self.shards.write("weighed", number, sums=moments.sums, squares=moments.squares, **own)

    def _weights(self, number: int, indices: NDArray[np.int64], count: Any) -> NDArray[np.float32]:
        """Work out the channel weights (n, K) of a shard's images."""
        weights = np.empty((len(indices), self.net.channels), dtype=np.float32)
        with layers.evaluating(self.net):
            pooled_form = WEIGHTINGS[self.options.method].pooled is not None
            if pooled_form and self._gathered["pooled"] and isinstance(self.net, EmbeddingNet):
                pooled = self.shards.read("embedded", number, "pooled")["pooled"]
                cells = self.net.map_size[0] * self.net.map_size[1]
                for start in range(0, len(indices), self.options.batch_size):
                    part = slice(start, start + self.options.batch_size)
                    vectors = torch.from_numpy(pooled[part]).to(self.net.device)
                    weights[part] = _of_pooled(
                        self.net, vectors, self.directions(indices[part]), self.options.method, cells
                    )
                    count(len(vectors))
            elif len(indices):
                # The head needs whole feature maps: a second pass makes them anew rather than keep them all.
                images = self.samples.subset(self._gathered["kept"][indices])
                batches = tensor_batches(self.net, images, what="", strict=True, count=count, **self.reading)
                for rows, batch in batches:
                    found = weigh(self.net, self.net.layer, batch, self.directions(indices[rows]), self.options.method)
                    weights[rows] = found.weights.cpu().numpy()
        return weights

    def directions(self, indices: NDArray[np.int64]) -> Tensor:
        """Draw the partners of images, and give the directions (B, pairs, D) of their triplets."""
        sides = (np.stack(side) for side in zip(*map(self._partners.draw, indices.tolist()), strict=True))
        positives, negatives = (torch.from_numpy(self._embeddings[side]) for side in sides)
        return direction(positives, negatives, self.net.metric).to(self.net.device)

    def finish(self) -> WeightDatabase:
        """Step 4, once: the refinement, and the database, which the others read from a file."""
        if self.group.size == 1:
            return self._database()
        path = self.shards.folder / _DATABASE
        if self.group.main:
            self._database().save(path)
        self.group.wait()
        database = WeightDatabase.load(path)
        self.group.wait()  # until then, nobody may remove the files
        return database

    def _database(self) -> WeightDatabase:
        net, gathered, samples = self.net, self._gathered, self._kept
        centroids, cluster, distance = (gathered[name] for name in ("centroids", "cluster", "distance"))
        count, counts = len(centroids), np.bincount(cluster, minlength=len(centroids))
        moments = clustering.Moments(count, net.channels)
        for number in range(len(self.shards)):  # always in this order: sums of floats depend on it
            moments.merge(**self.shards.read("weighed", number, "sums", "squares"))
        mean, std = moments.result(counts)
        channels, strongest = top_channels(mean, self.options.top_k)
        look = None
        if self.options.refinement:
            look = measure_refinement(
                net,
                samples,
                centroids,
                cluster,
                distance,
                self._pseudo,
                self.directions,
                self.options.method,
                **self.reading,
            )
        names = tuple(samples.names)
        return WeightDatabase(
            network=NetworkRecord.of(net),
            geometry=receptive_field.geometry(net.body, net.layer, net.preprocess.input_size),
            method=self.options.method,
            target="triplet_margin",
            pairs=self.options.pairs,
            seed=self.options.seed,
            created=now(),
            centroids=centroids,
            counts=counts,
            weights_mean=mean,
            weights_std=std,
            top_channels=channels,
            top_weights=strongest,
            distance_quantiles=clustering.distance_quantiles(distance, cluster, count),
            label_names=names if samples.labels is not None else None,
            label_histogram=histogram(cluster, samples.labels, count, len(names))
            if samples.labels is not None
            else None,
            exemplars=self._exemplars() if self.options.exemplars else None,
            refinement=look,
            embedcam_version=__version__,
        )

    def _exemplars(self) -> Exemplars:
        samples, gathered = self._kept, self._gathered
        shape = len(samples), self.options.top_k
        channels, strongest = np.empty(shape, np.int32), np.empty(shape, np.float32)
        for number, (start, end) in enumerate(itertools.pairwise(gathered["bounds"])):
            found = self.shards.read("weighed", number, "channels", "strongest")
            channels[start:end], strongest[start:end] = found["channels"], found["strongest"]
        embeddings = np.fromfile(self._embeddings_path, np.float32).reshape(len(samples), self.net.dim)
        return Exemplars(
            embeddings,
            channels,
            strongest,
            gathered["cluster"],
            samples.labels if samples.labels is not None else np.full(len(samples), -1, dtype=np.int64),
            tuple(samples.ids),
            partition(embeddings, self.net.metric, self.options.seed),
        )

    @property
    def _embeddings_path(self) -> Path:
        return self.shards.folder / "embeddings.f32"

    @cached_property
    def _gathered(self) -> dict[str, NDArray[Any]]:
        return self.shards.read("gathered")

    @cached_property
    def _embeddings(self) -> Rows:
        return Rows(self._embeddings_path, self.net.dim)

    @cached_property
    def _kept(self) -> Samples:
        kept = self._gathered["kept"]
        return self.samples if len(kept) == len(self.samples) else self.samples.subset(kept)

    @cached_property
    def _pseudo(self) -> NDArray[np.int64]:
        """The labels; clusters where there are none."""
        labels = self._kept.labels
        gathered = self._gathered
        return (
            _cluster_labels(gathered["cluster"], gathered["centroids"], self.net.metric) if labels is None else labels
        )

    @cached_property
    def _partners(self) -> Partners:
        known = self._kept.labels is not None
        names = self._kept.names if known else [f"cluster {c}" for c in range(len(self._gathered["centroids"]))]
        return Partners(self._pseudo, names, self.options.pairs, self.options.seed)

    def _counting(self, what: str, step: str) -> contextlib.AbstractContextManager[Any]:
        """Show the progress of this process's share of a step."""
        return counting(what, sum(len(self.shards.rows(number)) for number in self.shards.unfinished(step)))


def _part(embedded: Embedded, rows: range) -> Embedded:
    """Cut a shard out of what was embedded before."""
    inside = slice(*np.searchsorted(embedded.kept, [rows.start, rows.stop]).tolist())
    pooled = None if embedded.pooled is None else embedded.pooled[inside]
    return Embedded(embedded.kept[inside], embedded.embeddings[inside], pooled)


def _of_pooled(net: EmbeddingNet, pooled: Tensor, directions: Tensor, method: str, cells: int) -> NDArray[np.float32]:
    embed: Callable[[Tensor], Tensor] = lambda maps: net.head_embed(maps[:, :, 0, 0])  # noqa: E731
    return np.asarray(grad_weights(embed, pooled[:, :, None, None], directions, method, cells=cells).cpu())


def _cluster_labels(cluster: NDArray[np.int64], centroids: NDArray[np.float32], metric: str) -> NDArray[np.int64]:
    """Let clusters serve as labels; an image alone in its cluster joins the nearest larger one, to have a positive."""
    counts = np.bincount(cluster, minlength=len(centroids))
    large = np.flatnonzero(counts > 1)
    if len(large) == 0:
        return np.zeros_like(cluster)
    nearest, _ = Neighbors(centroids[large], metric).nearest(centroids)
    return np.where(counts[cluster] > 1, cluster, large[nearest[cluster]])


def histogram(cluster: NDArray[np.int64], labels: NDArray[np.int64], clusters: int, names: int) -> NDArray[np.int64]:
    """Count the images of each label in each cluster.

    Args:
        cluster: (N,) index of each image's cluster.
        labels: (N,) of the images.
        clusters: C.
        names: L, the number of labels.

    Returns:
        (C, L).
    """
    counts = np.zeros((clusters, names), dtype=np.int64)
    np.add.at(counts, (cluster, labels), 1)
    return counts


def now() -> str:
    """Tell the time of creation; reproducible builds set SOURCE_DATE_EPOCH.

    Returns:
        UTC, ISO 8601.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.fromtimestamp(int(epoch), timezone.utc) if epoch else datetime.now(timezone.utc)
    return moment.isoformat(timespec="seconds")
