"""From a network and a data set to a weight database."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import __version__, layers, receptive_field
from ..data.arrays import as_samples
from ..data.samples import Samples
from ..errors import DatabaseError
from ..gradient.gradcam import METHODS
from ..nets.embedding import EmbeddingNet
from ..nets.inference import Embedded, embed, tensor_batches
from ..nets.network import Network
from ..progress import track
from . import clusters as clustering
from .closer import look_closer
from .grad_weights import direction, grad_weights, weigh
from .neighbors import Neighbors
from .record import Exemplars, NetworkRecord, WeightDatabase
from .triplets import Partners


def build_database(
    net: Network,
    dataset: Any,
    *,
    clusters: int = 50,
    top_k: int = 50,
    pairs: int = 50,
    method: str = "gradcam",
    exemplars: bool = True,
    closer: bool = True,
    embedded: Embedded | None = None,
    seed: int = 0,
    batch_size: int = 32,
    strict: bool = False,
    workers: int = 2,
) -> WeightDatabase:
    """Embed the training images, cluster them, and average their Grad-CAM channel weights over each cluster.

    Args:
        net: The network; its parameters, mode and `.grad` are left as they are.
        dataset: `Samples`; a SPEC such as "folder:PATH"; or a sequence of (image, label) or of images, each (3, H, W)
            as the network wants it. Without labels, the clusters serve as labels.
        clusters: How many; fewer if there are fewer different images.
        top_k: Channels T kept of each cluster, at most the layer's K.
        pairs: Triplets an image.
        method: "gradcam" or "gradcam++".
        exemplars: Keep every image's embedding and strongest channels too.
        closer: Look at some images of each cluster more closely too, for sharper maps by default; without it, images
            are explained at the network's own size and by its feature layer alone.
        embedded: What `nets.inference.embed` has seen of this data set, to save the pass.
        seed: Of the partners and the k-means.
        batch_size: Images a batch.
        strict: Raise on an unreadable image instead of leaving it out with a warning.
        workers: Threads that read images ahead.

    Returns:
        The database.

    Raises:
        DataError: If the images or their labels do not allow triplets.
        DatabaseError: If `top_k` or `method` cannot be used.

    Source:
        Chen et al. 2020, Adapting Grad-CAM for Embedding Networks (arXiv 2001.06538).
    """
    samples = as_samples(dataset)
    if not 1 <= top_k <= net.channels:
        raise DatabaseError(
            f"top_k {top_k} is outside 1..{net.channels}, the channels of layer {net.layer!r}; choose --top-k within"
        )
    if method not in METHODS:
        raise DatabaseError(f"unknown method {method!r}; use one of {', '.join(METHODS)}")
    if samples.labels is not None:  # fail before the long pass, not after it
        Partners(samples.labels, samples.names, pairs, seed)

    seen = embedded or embed(net, samples, batch_size=batch_size, strict=strict, workers=workers)
    samples = samples.subset(seen.kept)
    centroids, cluster, distance = clustering.kmeans(seen.embeddings, clusters, net.metric, seed)
    labels = samples.labels
    pseudo = _cluster_labels(cluster, centroids, net.metric) if labels is None else labels
    names = samples.names if labels is not None else [f"cluster {c}" for c in range(len(centroids))]
    partners = Partners(pseudo, names, pairs, seed)
    known = torch.from_numpy(seen.embeddings)

    def directions(indices: NDArray[np.int64]) -> Tensor:
        positives, negatives = (np.stack(side) for side in zip(*map(partners.draw, indices.tolist()), strict=True))
        return direction(known[positives], known[negatives], net.metric).to(net.device)

    options = {"batch_size": batch_size, "workers": workers}
    weights = _weights(net, samples, seen, directions, method, **options)
    look = None
    if closer:
        look = look_closer(net, samples, centroids, cluster, distance, pseudo, directions, method, **options)

    count = len(centroids)
    mean, std = clustering.moments(weights, cluster, count)
    channels, strongest = clustering.top_channels(mean, top_k)
    kept = None
    if exemplars:
        own_channels, own_weights = clustering.top_channels(weights, top_k)
        label = labels if labels is not None else np.full(len(samples), -1, dtype=np.int64)
        kept = Exemplars(seen.embeddings, own_channels, own_weights, cluster, label, tuple(samples.ids))
    return WeightDatabase(
        network=NetworkRecord.of(net),
        geometry=receptive_field.geometry(net.body, net.layer, net.preprocess.input_size),
        method=method,
        target="triplet_margin",
        pairs=pairs,
        seed=seed,
        created=_now(),
        centroids=centroids,
        counts=np.bincount(cluster, minlength=count),
        weights_mean=mean,
        weights_std=std,
        top_channels=channels,
        top_weights=strongest,
        distance_quantiles=clustering.distance_quantiles(distance, cluster, count),
        label_names=tuple(samples.names) if labels is not None else None,
        label_histogram=_histogram(cluster, labels, count, len(samples.names)) if labels is not None else None,
        exemplars=kept,
        closer=look,
        embedcam_version=__version__,
    )


def _weights(
    net: Network,
    samples: Samples,
    seen: Embedded,
    directions: Callable[[NDArray[np.int64]], Tensor],
    method: str,
    *,
    batch_size: int,
    workers: int,
) -> NDArray[np.float32]:
    """Work out every image's channel weights (N, K)."""
    weights = np.empty((len(samples), net.channels), dtype=np.float32)
    with layers.evaluating(net):
        if seen.pooled is not None and isinstance(net, EmbeddingNet):
            cells = net.map_size[0] * net.map_size[1]
            starts = range(0, len(samples), batch_size)
            for start in track(starts, "weighing", len(samples), unit=batch_size):
                indices = np.arange(start, min(start + batch_size, len(samples)))
                pooled = torch.from_numpy(seen.pooled[indices]).to(net.device)
                weights[indices] = _of_pooled(net, pooled, directions(indices), method, cells)
        else:
            # The head needs whole feature maps: a second pass makes them anew rather than keep them all.
            for indices, images in tensor_batches(net, samples, batch_size, "weighing", strict=True, workers=workers):
                found = weigh(net, net.layer, images, directions(indices), method)
                weights[indices] = found.weights.cpu().numpy()
    return weights


def _of_pooled(net: EmbeddingNet, pooled: Tensor, directions: Tensor, method: str, cells: int) -> NDArray[np.float32]:
    maps, sums = pooled[:, :, None, None], pooled * cells
    embed: Callable[[Tensor], Tensor] = lambda maps: net.head_embed(maps[:, :, 0, 0])  # noqa: E731
    return np.asarray(grad_weights(embed, maps, directions, method, sums=sums, cells=cells).cpu())


def _cluster_labels(cluster: NDArray[np.int64], centroids: NDArray[np.float32], metric: str) -> NDArray[np.int64]:
    """Let clusters serve as labels; an image alone in its cluster joins the nearest larger one, to have a positive."""
    counts = np.bincount(cluster, minlength=len(centroids))
    large = np.flatnonzero(counts > 1)
    if len(large) == 0:
        return np.zeros_like(cluster)
    nearest, _ = Neighbors(centroids[large], metric).nearest(centroids)
    return np.where(counts[cluster] > 1, cluster, large[nearest[cluster]])


def _histogram(cluster: NDArray[np.int64], labels: NDArray[np.int64], clusters: int, names: int) -> NDArray[np.int64]:
    histogram = np.zeros((clusters, names), dtype=np.int64)
    np.add.at(histogram, (cluster, labels), 1)
    return histogram


def _now() -> str:
    """Return the time of creation; reproducible builds set SOURCE_DATE_EPOCH."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.fromtimestamp(int(epoch), timezone.utc) if epoch else datetime.now(timezone.utc)
    return moment.isoformat(timespec="seconds")
