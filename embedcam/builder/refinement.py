"""What the default explainer adds to the published method: a larger size, and a finer layer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..data.preprocess import Preprocess
from ..data.samples import Samples
from ..database.record import Fusion, Refinement
from ..database.weight_database import WeightDatabase
from ..explain.explainer import Explainer
from ..explain.grad_weights import weigh
from ..explain.likeness import alike_message
from ..nets import layers, receptive_field
from ..nets.choice import suggest_finer
from ..nets.inference import tensor_batches
from ..nets.layout import Layout
from ..nets.network import Network
from .clusters import Clustered

logger = logging.getLogger("embedcam")

# Chosen on training images, see docs/heat-maps.md: maps improve up to the first factor, and more pixels cost time. The
# second factor is for networks that do not recognise images of the larger size.
_ENLARGED, _MULTIPLE = (1.75, 1.25), 32
# Images that are explained at the larger size, to tell whether they are recognised and how far distances grow: at least
# and at most so many, and between them one of 50. They cost less than a tenth of embedding all images.
_LEAST, _MOST, _ONE_OF = 12, 100, 50
# Of the images recognised at the network's size, this share must be recognised at the larger one: all but one of 12.
_RECOGNISED = 0.9
# Finer layers respond to edges instead of parts of objects.
_LEAST_STRIDE = 8
# Images per cluster of which channel weights are averaged: accurate enough, and the cost does not grow with the data.
_MEMBERS = 8

Weigh = Callable[[str, Preprocess], NDArray[np.float32]]


def refine(
    net: Network,
    database: WeightDatabase,
    samples: Samples,
    clustered: Clustered,
    labels: NDArray[np.int64],
    weigh_finer: Weigh | None,
    *,
    workers: int = 2,
) -> WeightDatabase:
    """Choose the size and the finer layer of the default explainer, by explaining a few training images.

    Logs a warning if their maps look alike.

    Args:
        net: The network.
        database: Its database, without a refinement.
        samples: The training images.
        clustered: Their clusters.
        labels: (N,) of each image; its cluster if there are no labels.
        weigh_finer: From a layer and a preprocessing to the mean channel weights (C, K') of the clusters' images; None
            leaves them out.
        workers: Threads that read images ahead.

    Returns:
        The database with the refinement; without one if there is neither a larger size nor a finer layer.
    """
    finer, chosen = _finer(net), _evenly(clustered.cluster, clustered.distance)
    for preprocess in _sizes(net, samples):
        own_size, fusion = preprocess == net.preprocess, finer
        try:
            if finer is not None and weigh_finer is not None:
                fusion = replace(finer, weights_mean=weigh_finer(finer.layer, preprocess))
            refinement = None if own_size and fusion is None else Refinement(preprocess.input_size, 1.0, fusion)
            refined = replace(database, refinement=refinement)
            loaded = tensor_batches(
                net, samples.subset(chosen), _LEAST, "refining", preprocess=preprocess, strict=True, workers=workers
            )
            explainer = Explainer(net, refined)
            explained = [explainer(images) for _, images in loaded]
        except Exception as error:  # vision transformers assert, others fail in a matrix product
            if own_size:
                raise
            logger.info("images cannot be explained at %s: %s", preprocess.input_size, error)
            continue
        clusters, distances = (
            np.concatenate([getattr(each, name) for each in explained]) for name in ("clusters", "distances")
        )
        scale = _scale(clustered.distance[chosen], distances)
        if own_size or _recognised(clusters, clustered.cluster, labels, chosen):
            break
    message = alike_message(explained[0].heatmaps)
    if message is not None:
        logger.warning("%s", message)
    if refinement is None:
        return refined
    return replace(refined, refinement=replace(refinement, distance_scale=scale))


def finer_weights(
    net: Network,
    layer: str,
    preprocess: Preprocess,
    samples: Samples,
    clustered: Clustered,
    directions: Callable[[NDArray[np.int64]], Tensor],
    method: str,
    **reading: Any,
) -> NDArray[np.float32]:
    """Average the channel weights of a finer layer over some images of each cluster.

    Args:
        net: The network.
        layer: Dotted name of the finer layer.
        preprocess: Of the size at which images are explained.
        samples: The training images.
        clustered: Their clusters.
        directions: From image indices (B,) to the directions of their triplets, (B, pairs, D) or (B, 1, D).
        method: Name of a channel weighting, one of `WEIGHTINGS`.
        reading: Batch size and workers of `tensor_batches`.

    Returns:
        (C, K').
    """
    chosen = _spread(clustered.cluster, clustered.distance)
    size = " x ".join(map(str, preprocess.input_size))
    loaded = tensor_batches(
        net, samples.subset(chosen), what=f"weighing, {size}", preprocess=preprocess, strict=True, **reading
    )
    weights = []
    with layers.evaluating(net):
        for rows, images in loaded:
            weighed = weigh(net, layer, images, directions(chosen[rows]), method)
            weights.append(weighed.weights.float().cpu().numpy())
    cluster, each = clustered.cluster[chosen], np.concatenate(weights).astype(np.float64)
    return np.stack([each[cluster == c].mean(axis=0) for c in range(len(clustered.centroids))]).astype(np.float32)


def _finer(net: Network) -> Fusion | None:
    """Choose the finer layer, if there is one that responds to more than edges."""
    size = net.preprocess.input_size
    layer = suggest_finer(net.body, net.layer, size)
    if layer is None:
        return None
    geometry = receptive_field.geometry(net.body, layer, size, net.reading(layer))
    return Fusion(layers.path(net.body, layer), geometry) if min(geometry.cell_stride) >= _LEAST_STRIDE else None


def _sizes(net: Network, samples: Samples) -> Iterator[Preprocess]:
    """List the sizes to try, largest first; preprocessed images only have the network's own."""
    own = net.preprocess
    for factor in _ENLARGED:
        height, width = _enlarged(own.input_size, factor, _unit(net))
        if isinstance(samples.image(0), np.ndarray) or height * width <= own.input_size[0] * own.input_size[1]:
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


def _evenly(cluster: NDArray[np.int64], distance: NDArray[np.float32]) -> NDArray[np.int64]:
    """Select images evenly from all clusters, and from the innermost to the outermost."""
    order = np.lexsort((distance, cluster))
    count = min(len(order), max(_LEAST, min(_MOST, len(order) // _ONE_OF)))
    positions = np.linspace(0, len(order) - 1, count)
    return np.sort(order[positions.round().astype(int)])


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
