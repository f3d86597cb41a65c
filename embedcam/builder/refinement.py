"""What the default explainer needs besides the published method: a larger size, and the weights of a finer layer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.preprocess import Preprocess
from ..data.samples import Samples
from ..database.neighbors import Neighbors
from ..database.record import Fusion, Refinement
from ..explain.grad_weights import weigh
from ..nets import layers, receptive_field
from ..nets.choice import suggest_finer
from ..nets.geometry import Geometry
from ..nets.inference import tensor_batches
from ..nets.layout import Layout
from ..nets.network import Network

logger = logging.getLogger("embedcam")

# Chosen on training images, see docs/heat-maps.md: maps improve up to the first factor, and more pixels cost time. The
# second factor is for networks that do not recognise images of the larger size.
_ENLARGED, _MULTIPLE = (1.75, 1.25), 32
# Of the images recognised at the network's size, this share must be recognised at the larger one.
_RECOGNISED = 0.95
# Finer layers respond to edges instead of parts of objects.
_LEAST_STRIDE = 8
# Images per cluster: their mean is accurate enough, and the cost does not grow with the data.
_MEMBERS = 8


def measure_refinement(
    net: Network,
    samples: Samples,
    centroids: NDArray[np.float32],
    cluster: NDArray[np.int64],
    distance: NDArray[np.float32],
    labels: NDArray[np.int64],
    directions: Callable[[NDArray[np.int64]], Tensor],
    method: str = "gradcam",
    *,
    batch_size: int = 16,
    workers: int = 2,
) -> Refinement | None:
    """Run some images of each cluster at a larger size, and average their channel weights at a finer layer.

    Args:
        net: The network.
        samples: The training images.
        centroids: (C, D).
        cluster: (N,) of each image.
        distance: (N,) from each image to its centroid.
        labels: (N,) of each image; its cluster if there are no labels.
        directions: From image indices (B,) to the directions of their triplets, (B, pairs, D) or (B, 1, D).
        method: Name of a channel weighting, one of `WEIGHTINGS`.
        batch_size: Images per batch.
        workers: Threads that read images ahead.

    Returns:
        The size to explain at, and the finer layer; None if there is neither.
    """
    layer, geometry = _finer(net)
    chosen = _spread(cluster, distance)
    for preprocess in _sizes(net, samples):
        own_size = preprocess == net.preprocess
        if own_size and layer is None:
            return None
        loaded = tensor_batches(
            net,
            samples.subset(chosen),
            batch_size,
            f"refining, {' x '.join(map(str, preprocess.input_size))}",
            preprocess=preprocess,
            strict=True,
            workers=workers,
        )
        weights = _Mean(cluster[chosen], len(centroids))
        embeddings: list[NDArray[np.float32]] = []
        with layers.evaluating(net):
            for rows, images in loaded:
                if layer is not None:
                    weighed = weigh(net, layer, images, directions(chosen[rows]), method)
                    weights.add(rows, weighed.weights.float().cpu().numpy())
                    embeddings.append(weighed.embeddings.float().cpu().numpy())
                else:
                    with torch.inference_mode():
                        embeddings.append(net(images).float().cpu().numpy())
        nearest, grown = Neighbors(centroids, net.metric).nearest(np.concatenate(embeddings))
        if own_size or _recognised(nearest, cluster, labels, chosen):
            break
    fusion = None
    if layer is not None and geometry is not None:
        fusion = Fusion(layers.path(net.body, layer), geometry, weights.result())
    return Refinement(preprocess.input_size, _scale(distance[chosen], grown), fusion)


def _finer(net: Network) -> tuple[str, Geometry] | tuple[None, None]:
    """Choose the finer layer, if there is one that responds to more than edges."""
    size = net.preprocess.input_size
    layer = suggest_finer(net.body, net.layer, size)
    if layer is None:
        return None, None
    geometry = receptive_field.geometry(net.body, layer, size, net.reading(layer))
    return (layer, geometry) if min(geometry.cell_stride) >= _LEAST_STRIDE else (None, None)


class _Mean:
    """Mean of the rows of each cluster, accumulated batch by batch."""

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


def _sizes(net: Network, samples: Samples) -> Iterator[Preprocess]:
    """List the sizes to try, largest first; preprocessed images only have the network's own."""
    own = net.preprocess
    for factor in _ENLARGED:
        height, width = _enlarged(own.input_size, factor, _unit(net))
        if isinstance(samples.image(0), np.ndarray) or height * width <= own.input_size[0] * own.input_size[1]:
            break
        try:
            with layers.evaluating(net), torch.inference_mode():
                net.activations(torch.zeros(1, net.in_channels, height, width, device=net.device))
        except Exception as error:  # vision transformers assert, others fail in a matrix product
            logger.info("images are explained at %s, the network accepts no other size: %s", own.input_size, error)
            break
        yield replace(own, input_size=(height, width))
    yield own


def _unit(net: Network) -> int:
    """Return what sides are a multiple of: the patches of a transformer, or the strides of most other networks."""
    reading = net.reading()
    if isinstance(reading, Layout) and reading.grid is not None:
        patch = net.preprocess.input_size[0] / reading.grid[0]
        return int(patch) if patch.is_integer() else _MULTIPLE
    return _MULTIPLE


def _enlarged(size: tuple[int, int], factor: float, unit: int) -> tuple[int, int]:
    """Enlarge a size by about a factor, in proportion, to sides that are multiples of a unit."""
    common = math.gcd(*size)
    grown = max(unit, round(common * factor / unit) * unit)
    if grown > 2 * factor * common:  # the proportions are kept by no size of about this factor
        height, width = (max(unit, round(side * factor / unit) * unit) for side in size)
        return height, width
    return size[0] // common * grown, size[1] // common * grown


def _recognised(
    nearest: NDArray[np.int64], cluster: NDArray[np.int64], labels: NDArray[np.int64], chosen: NDArray[np.int64]
) -> bool:
    """Check that a network recognises images at another size: they fall into clusters of their own label.

    A network may respond to the object and yet take it for another class; its heat map would explain nothing.
    """
    counts = np.zeros((int(cluster.max()) + 1, int(labels.max()) + 1), dtype=np.int64)
    np.add.at(counts, (cluster, labels), 1)
    most_common = counts.argmax(axis=1)
    before, now = (np.mean(most_common[c] == labels[chosen]) for c in (cluster[chosen], nearest))
    return bool(now >= _RECOGNISED * before)


def _spread(cluster: NDArray[np.int64], distance: NDArray[np.float32]) -> NDArray[np.int64]:
    """Select members of each cluster, evenly from the innermost to the outermost."""
    chosen = []
    for c in np.unique(cluster):
        members = np.flatnonzero(cluster == c)
        members = members[np.argsort(distance[members], kind="stable")]
        positions = np.linspace(0, len(members) - 1, min(_MEMBERS, len(members)))
        chosen.append(members[np.unique(positions.round().astype(int))])
    return np.sort(np.concatenate(chosen))


def _scale(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """Median growth of the distances; 1 if all images lie on their centroids."""
    apart = before > 1e-4
    return max(float(np.median(after[apart] / before[apart])), 1e-3) if apart.any() else 1.0
