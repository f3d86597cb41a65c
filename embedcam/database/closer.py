"""What the default explainer needs beside the published method: a second layer's weights, and how distances grow."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import layers, receptive_field
from ..data.samples import Samples
from ..heatmap import Geometry
from ..nets.inference import tensor_batches
from ..nets.network import Network
from ..preprocess import Preprocess
from .grad_weights import weigh
from .neighbors import Neighbors
from .record import Closer, Fusion

logger = logging.getLogger("embedcam")

# Chosen on training images, see docs/heat-maps.md: maps gain up to here, and each pixel more costs time.
_ENLARGED, _MULTIPLE = 1.75, 32
# Layers that are finer than this see edges rather than parts of objects.
_LEAST_STRIDE = 8
# So many images of each cluster are looked at: their mean is near enough, and the cost does not grow with the data.
_MEMBERS = 8


def look_closer(
    net: Network,
    samples: Samples,
    centroids: NDArray[np.float32],
    cluster: NDArray[np.int64],
    distance: NDArray[np.float32],
    directions: Callable[[NDArray[np.int64]], Tensor],
    method: str = "gradcam",
    *,
    batch_size: int = 16,
    workers: int = 2,
) -> Closer | None:
    """Look at some images of each cluster in a larger size, and average their channel weights at a finer layer.

    Args:
        net: The network.
        samples: The training images.
        centroids: (C, D).
        cluster: (N,) of each image.
        distance: (N,) of each image to its centroid.
        directions: From image indices (B,) to their triplets' directions (B, pairs, D).
        method: "gradcam" or "gradcam++".
        batch_size: Images a batch.
        workers: Threads that read images ahead.

    Returns:
        The size to explain at, and the finer layer; None if there is neither a better size nor such a layer.
    """
    layer, geometry = _finer(net)
    preprocess = _enlarged(net, samples)
    if layer is None and preprocess == net.preprocess:
        return None
    chosen = _spread(cluster, distance)
    found = Neighbors(centroids, net.metric)
    weights = _Mean(cluster[chosen], len(centroids))
    grown: list[NDArray[np.float32]] = []
    loaded = tensor_batches(
        net, samples.subset(chosen), batch_size, "looking closer", preprocess=preprocess, strict=True, workers=workers
    )
    with layers.evaluating(net):
        for rows, images in loaded:
            if layer is not None:
                seen = weigh(net, layer, images, directions(chosen[rows]), method)
                weights.add(rows, seen.weights.float().cpu().numpy())
                embeddings = seen.embeddings
            else:
                with torch.inference_mode():
                    embeddings = net(images)
            grown.append(found.nearest(embeddings.float().cpu().numpy())[1])
    fusion = None
    if layer is not None and geometry is not None:
        fusion = Fusion(layers.path(net.body, layer), geometry, weights.result())
    return Closer(preprocess.input_size, _scale(distance[chosen], np.concatenate(grown)), fusion)


def _finer(net: Network) -> tuple[str, Geometry] | tuple[None, None]:
    """Choose the finer layer, if there is one that sees more than edges."""
    size = net.preprocess.input_size
    layer = layers.suggest_finer(net.body, net.layer, size)
    if layer is None:
        return None, None
    geometry = receptive_field.geometry(net.body, layer, size)
    return (layer, geometry) if min(geometry.cell_stride) >= _LEAST_STRIDE else (None, None)


class _Mean:
    """The mean of rows over each cluster, gathered batch by batch."""

    def __init__(self, cluster: NDArray[np.int64], clusters: int) -> None:
        self._cluster = cluster
        self._counts = np.bincount(cluster, minlength=clusters)
        self._sums: NDArray[np.float64] | None = None

    def add(self, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        if self._sums is None:
            self._sums = np.zeros((len(self._counts), values.shape[1]))
        np.add.at(self._sums, self._cluster[rows], values)

    def result(self) -> NDArray[np.float32]:
        assert self._sums is not None
        return (self._sums / self._counts[:, None]).astype(np.float32)


def _enlarged(net: Network, samples: Samples) -> Preprocess:
    """Choose the size to explain at; the network's own where images come prepared, or the network takes no other."""
    own = net.preprocess
    if isinstance(samples.image(0), np.ndarray):
        return own
    height, width = (max(_MULTIPLE, round(side * _ENLARGED / _MULTIPLE) * _MULTIPLE) for side in own.input_size)
    try:
        with layers.evaluating(net), torch.inference_mode():
            net.activations(torch.zeros(1, 3, height, width, device=net.device))
    except Exception as error:  # whatever a network raises: vision transformers assert, others fail in a product
        logger.info("images are explained at %s, the network takes no other size: %s", own.input_size, error)
        return own
    return replace(own, input_size=(height, width))


def _spread(cluster: NDArray[np.int64], distance: NDArray[np.float32]) -> NDArray[np.int64]:
    """Take some members of each cluster, evenly from the innermost to the outermost."""
    chosen = []
    for c in np.unique(cluster):
        members = np.flatnonzero(cluster == c)
        members = members[np.argsort(distance[members], kind="stable")]
        places = np.linspace(0, len(members) - 1, min(_MEMBERS, len(members)))
        chosen.append(members[np.unique(places.round().astype(int))])
    return np.sort(np.concatenate(chosen))


def _scale(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """Compare distances; 1 where all images lie in their centroids, so that nothing can be compared."""
    apart = before > 1e-4
    return max(float(np.median(after[apart] / before[apart])), 1e-3) if apart.any() else 1.0
