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
from ..nets.inference import tensor_batches
from ..nets.network import Network
from ..preprocess import Preprocess
from .grad_weights import weigh
from .neighbors import Neighbors
from .record import Fusion

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
) -> Fusion | None:
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
        The finer layer's mean weights and the size to explain at; None if the network has no such layer.
    """
    own = net.preprocess.input_size
    layer = layers.suggest_finer(net.body, net.layer, own)
    if layer is None:
        return None
    geometry = receptive_field.geometry(net.body, layer, own)
    if min(geometry.cell_stride) < _LEAST_STRIDE:
        return None
    preprocess = _enlarged(net, samples)
    chosen = _spread(cluster, distance)
    found = Neighbors(centroids, net.metric)
    sums: NDArray[np.float64] | None = None
    grown: list[NDArray[np.float32]] = []
    loaded = tensor_batches(
        net, samples.subset(chosen), batch_size, "looking closer", preprocess=preprocess, strict=True, workers=workers
    )
    with layers.evaluating(net):
        for rows, images in loaded:
            weights, _, embeddings = weigh(net, layer, images, directions(chosen[rows]), method)
            sums = np.zeros((len(centroids), weights.shape[1])) if sums is None else sums
            np.add.at(sums, cluster[chosen[rows]], weights.float().cpu().numpy())
            grown.append(found.nearest(embeddings.float().cpu().numpy())[1])
    assert sums is not None
    counts = np.bincount(cluster[chosen], minlength=len(centroids))
    return Fusion(
        layer=layers.path(net.body, layer),
        geometry=geometry,
        weights_mean=(sums / counts[:, None]).astype(np.float32),
        input_size=preprocess.input_size,
        distance_scale=_scale(distance[chosen], np.concatenate(grown)),
    )


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
