"""The steps from images to a weight database."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._version import __version__
from ..data.preprocess import Preprocess
from ..data.samples import Samples
from ..database.neighbors import Neighbors, partition
from ..database.record import Exemplars, NetworkRecord, top_channels
from ..database.weight_database import WeightDatabase
from ..errors import DataError, NetworkError
from ..explain.explainer import Explainer
from ..explain.grad_weights import direction, grad_weights, weigh
from ..explain.likeness import warn_of_maps_alike
from ..explain.weighting import WEIGHTINGS
from ..nets import layers, receptive_field
from ..nets.inference import Embedded, tensor_batches
from ..nets.network import Network
from ..utils.clock import now
from ..utils.distributed import Group
from ..utils.progress import counting
from ..utils.resume import Parts, Rows, SavedParts
from ..utils.shards import Shards
from . import clusters as clustering
from .embedding import embed_shards, read_embeddings
from .refinement import finer_weights, refine
from .triplets import ClassSums, Partners, count_members

logger = logging.getLogger("embedcam")

# k-means needs no more than this many embeddings, or this many per cluster; of more images, a sample is clustered.
_SAMPLE, _SAMPLE_PER_CLUSTER = 2**15, 256
# With fewer images per cluster, on average, a mean says little.
_IMAGES_PER_CLUSTER = 3


@dataclass(frozen=True)
class BuildOptions:
    """What a database depends on besides network and images; see `build_database`. 0 pairs are all triplets."""

    clusters: int
    top_k: int
    pairs: int
    method: str
    exemplars: bool
    refinement: bool
    finer_weights: bool
    seed: int
    batch_size: int


class Build:
    """The steps of a build; each stores its results as parts, so that one process does it once.

    Args:
        net: The network.
        samples: The training images.
        parts: Where results are stored; `SavedParts` for several processes.
        group: The processes that share the work.
        options: What the database depends on.
        strict: Raise on an unreadable image instead of leaving it out with a warning.
        workers: Threads that read images ahead.
    """

    def __init__(
        self,
        net: Network,
        samples: Samples,
        parts: Parts,
        group: Group,
        options: BuildOptions,
        *,
        strict: bool,
        workers: int,
    ) -> None:
        self.net, self.samples, self.parts, self.group, self.options = net, samples, parts, group, options
        self.embedded, self.weighed = (Shards(parts, step, len(samples), group) for step in ("embedded", "weighed"))
        self.strict = strict
        self.reading: dict[str, Any] = {"batch_size": options.batch_size, "workers": workers}

    def run(self, embedded: Embedded | None = None) -> WeightDatabase:
        """Do the steps that are not finished.

        Args:
            embedded: Embeddings of the images, if they are available already.

        Returns:
            The database.
        """
        # Step 1, for each shard: embeddings and pooled features.
        embed_shards(self.net, self.samples, self.embedded, embedded=embedded, strict=self.strict, **self.reading)
        self.group.wait()
        for step in (self.cluster, self.gather, self.weigh):
            step()
            self.group.wait()
        if self.group.size == 1:
            return self.assemble()
        assert isinstance(self.parts, SavedParts)
        path = self.parts.folder / "database.h5"
        if self.group.main:
            self.assemble().save(path)
        self.group.wait()
        database = WeightDatabase.load(path)
        self.group.wait()  # before that, nobody may remove the file
        return database

    def cluster(self) -> None:
        """Step 2, once: the clusters, the distances of all images, and the sums of each class."""
        if not self.group.main or "clusters" in self.parts:
            return
        parts = [self.embedded.read(number, "kept")["kept"] for number in range(len(self.embedded))]
        bounds = np.cumsum([0, *map(len, parts)])
        count, seed, metric = int(bounds[-1]), self.options.seed, self.net.metric
        if count == 0:
            raise DataError(f"none of the {len(self.samples)} images can be read; see the warnings above")
        kept = np.concatenate(parts)
        labels = None if self.samples.labels is None else self.samples.labels[kept]
        if labels is not None:
            count_members(labels, self.samples.names)
        clusters = min(self.options.clusters, max(min(2, count), count // _IMAGES_PER_CLUSTER))
        if clusters < self.options.clusters:
            logger.warning("%d images make %d clusters instead of %d", count, clusters, self.options.clusters)
        size, chosen = max(_SAMPLE, _SAMPLE_PER_CLUSTER * clusters), np.arange(count)
        if count > size:
            chosen = np.sort(np.random.default_rng(seed % 2**63).choice(count, size, replace=False))
        sample = read_embeddings(self.embedded, bounds, chosen)
        centroids, _, _ = clustering.kmeans(sample, clusters, metric, seed)
        if labels is None and len(centroids) < 2:
            raise DataError(
                f"images without labels need at least two clusters, {count} images make one; "
                "add different images, and choose --clusters 2 or more"
            )
        index = Neighbors(centroids, metric)
        cluster, distance = np.empty(count, np.int64), np.empty(count, np.float32)
        classes = ClassSums.zeros(len(centroids) if labels is None else len(self.samples.names), self.net.dim)
        for number, (start, end) in enumerate(pairwise(bounds)):
            embeddings = self.embedded.read(number, "embeddings")["embeddings"]
            cluster[start:end], distance[start:end] = index.nearest(embeddings)
            classes.add((cluster if labels is None else labels)[start:end], embeddings)
        held_out = distance.copy()  # images outside the sample are held out already
        held_out[chosen] = clustering.held_out_distances(sample, clusters, metric, seed)
        clustered = clustering.Clustered(
            kept=kept,
            bounds=bounds,
            centroids=centroids,
            cluster=cluster,
            distance=distance,
            held_out=held_out,
            class_sums=classes.sums,
            class_counts=classes.counts,
        )
        self.parts.write("clusters", **clustered._asdict())

    def gather(self) -> None:
        """Step 2 b, once, for drawn partners: all embeddings in one file, whose rows can be read at random."""
        if self.group.main and self.options.pairs:
            _ = self.embeddings

    def weigh(self) -> None:
        """Step 3, for each shard: channel weights summed over each cluster, and the strongest of each image."""
        clustered, unfinished = self.clustered, self.weighed.unfinished()
        with counting("weighing", sum(len(self.weighed.images(number)) for number in unfinished)) as count:
            for number in unfinished:
                start, end = clustered.bounds[number : number + 2]
                weights = self._weights(number, np.arange(start, end), count)
                moments = clustering.Moments(len(clustered.centroids), self.net.channels)
                moments.add(clustered.cluster[start:end], weights)
                own: dict[str, NDArray[Any]] = {}
                if self.options.exemplars:
                    own["top_channels"], own["top_weights"] = top_channels(weights, self.options.top_k)
                self.weighed.write(number, sums=moments.sums, squares=moments.squares, **own)

    def _weights(self, number: int, indices: NDArray[np.int64], count: Any) -> NDArray[np.float32]:
        """Compute the channel weights (n, K) of a shard's images."""
        weights = np.empty((len(indices), self.net.channels), dtype=np.float32)
        method = self.options.method
        head = None if WEIGHTINGS[method].pooled is None else self.net.head_of_means()
        with layers.evaluating(self.net):
            if head is not None and "pooled" in (seen := self.embedded.read(number)):
                cells = self.net.map_size[0] * self.net.map_size[1]
                for start in range(0, len(indices), self.options.batch_size):
                    part = slice(start, start + self.options.batch_size)
                    vectors = torch.from_numpy(seen["pooled"][part]).to(self.net.device)
                    weights[part] = _of_means(head, vectors, self.directions(indices[part]), method, cells)
                    count(len(vectors))
            elif len(indices):
                # The head needs whole feature maps: a second pass computes them again instead of storing them.
                images = self.readable.subset(indices)
                batches = tensor_batches(self.net, images, what="", strict=True, count=count, **self.reading)
                for rows, batch in batches:
                    weighed = weigh(self.net, self.net.layer, batch, self.directions(indices[rows]), method)
                    weights[rows] = weighed.weights.cpu().numpy()
        return weights

    def assemble(self) -> WeightDatabase:
        """Step 4, once: the refinement, and everything together.

        Returns:
            The database.
        """
        net, options, clustered, labels = self.net, self.options, self.clustered, self.readable.labels
        counts = np.bincount(clustered.cluster, minlength=len(clustered.centroids))
        moments = clustering.Moments(len(counts), net.channels)
        for number in range(len(self.embedded)):  # always in this order: sums of floats depend on it
            moments.merge(**self.weighed.read(number, "sums", "squares"))
        mean, std = moments.result(counts)
        if not mean.any():
            raise NetworkError(
                f"all channel weights of layer {net.layer!r} are zero: the embeddings of these images do not depend on "
                "its cells, or are all the same; choose another layer or other images"
            )
        channels, weights = top_channels(mean, options.top_k)
        names = tuple(self.readable.names)
        database = WeightDatabase(
            network=NetworkRecord.of(net),
            geometry=receptive_field.geometry(net.body, net.layer, net.preprocess.input_size, net.reading()),
            method=options.method,
            target="triplet_margin",
            pairs=options.pairs,
            seed=options.seed,
            created=now(),
            centroids=clustered.centroids,
            counts=counts,
            weights_mean=mean,
            weights_std=std,
            top_channels=channels,
            top_weights=weights,
            distance_quantiles=clustering.distance_quantiles(clustered.held_out, clustered.cluster, len(counts)),
            label_names=None if labels is None else names,
            label_histogram=None
            if labels is None
            else clustering.histogram(clustered.cluster, labels, len(counts), len(names)),
            exemplars=self._exemplars() if options.exemplars else None,
            embedcam_version=__version__,
        )
        workers = self.reading["workers"]
        if not options.refinement:
            warn_of_maps_alike(Explainer(net, database), self.readable, workers=workers)
            return database
        weigh_finer = self._finer_weights if options.finer_weights or not net.decomposable else None
        return refine(net, database, self.readable, clustered, self.labels, weigh_finer, workers=workers)

    def _finer_weights(self, layer: str, preprocess: Preprocess) -> NDArray[np.float32]:
        return finer_weights(
            self.net,
            layer,
            preprocess,
            self.readable,
            self.clustered,
            self.directions,
            self.options.method,
            **self.reading,
        )

    def _exemplars(self) -> Exemplars:
        samples, clustered = self.readable, self.clustered
        count, shape = len(samples), (len(samples), self.options.top_k)
        embeddings = np.empty((count, self.net.dim), np.float32)
        channels, weights = np.empty(shape, np.int32), np.empty(shape, np.float32)
        for number, (start, end) in enumerate(pairwise(clustered.bounds)):
            embeddings[start:end] = self.embedded.read(number, "embeddings")["embeddings"]
            weighed = self.weighed.read(number, "top_channels", "top_weights")
            channels[start:end], weights[start:end] = weighed["top_channels"], weighed["top_weights"]
        return Exemplars(
            embeddings,
            channels,
            weights,
            clustered.cluster,
            samples.labels if samples.labels is not None else np.full(count, -1, dtype=np.int64),
            tuple(samples.ids),
            partition(embeddings, self.net.metric, self.options.seed),
        )

    def directions(self, indices: NDArray[np.int64]) -> Tensor:
        """Compute the directions of images' triplets, (B, pairs, D); the mean of all triplets is (B, 1, D)."""
        partners: Iterable[NDArray[Any]]
        if self.options.pairs:
            sides = (np.stack(side) for side in zip(*map(self._partners.draw, indices.tolist()), strict=True))
            partners = (self.embeddings[side] for side in sides)
        else:
            anchors = read_embeddings(self.embedded, self.clustered.bounds, indices)
            partners = (side[:, None] for side in self._classes.mean_partners(self.labels[indices], anchors))
        positives, negatives = map(torch.from_numpy, partners)
        return direction(positives, negatives, self.net.metric).to(self.net.device, torch.float32)

    @cached_property
    def clustered(self) -> clustering.Clustered:
        """Result of step 2."""
        return clustering.Clustered(**self.parts.read("clusters"))

    @cached_property
    def embeddings(self) -> Rows:
        """(N, D) of the readable images."""
        shards = range(len(self.embedded))
        parts = (self.embedded.read(number, "embeddings")["embeddings"] for number in shards)
        return self.parts.rows("embeddings", parts, self.net.dim)

    @cached_property
    def readable(self) -> Samples:
        """The images that could be read."""
        kept, samples = self.clustered.kept, self.samples
        if getattr(samples, "problems", ()):  # which the first pass has named
            samples = replace(samples, problems=())  # type: ignore[type-var]
        return samples if len(kept) == len(samples) else samples.subset(kept)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(N,) labels of the readable images; their clusters if there are none."""
        labels = self.readable.labels
        return self.clustered.cluster if labels is None else labels

    @cached_property
    def _classes(self) -> ClassSums:
        return ClassSums(self.clustered.class_sums, self.clustered.class_counts)

    @cached_property
    def _partners(self) -> Partners:
        labelled, clusters = self.readable.labels is not None, len(self.clustered.centroids)
        names = self.readable.names if labelled else [f"cluster {c}" for c in range(clusters)]
        return Partners(self.labels, names, self.options.pairs, self.options.seed)


def _of_means(
    head: Callable[[Tensor], Tensor], means: Tensor, directions: Tensor, method: str, cells: int
) -> NDArray[np.float32]:
    embed: Callable[[Tensor], Tensor] = lambda maps: head(maps[:, :, 0, 0])  # noqa: E731
    return np.asarray(grad_weights(embed, means[:, :, None, None], directions, method, cells=cells).cpu())
