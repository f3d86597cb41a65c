"""Test whether heat maps depend on the image at all."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from ..data.samples import Samples
from ..nets.inference import tensor_batches
from .explainer import Explainer

ALIKE = 0.9
"""Above this mean correlation, the maps of different images say nothing about where things are."""
_COMPARED = 16  # images whose maps are compared with each other

logger = logging.getLogger("embedcam")


def likeness(maps: NDArray[np.float32]) -> float:
    """Compute the mean correlation between the maps of different images.

    Args:
        maps: (N, h, w); flat maps are left out.

    Returns:
        Mean of Pearson's correlation over all pairs, in [-1, 1]; 0 if fewer than two maps are not flat.
    """
    centred = maps - maps.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    lengths = np.linalg.norm(centred, axis=(1, 2), keepdims=True)
    usable = lengths[:, 0, 0] > 0
    units = centred[usable] / lengths[usable]
    count = len(units)
    return float((np.square(units.sum(axis=0)).sum() - count) / (count * (count - 1))) if count > 1 else 0.0


def alike_message(maps: NDArray[np.float32]) -> str | None:
    """Describe maps that look alike whatever the image.

    Args:
        maps: (N, h, w), of different images.

    Returns:
        A sentence with the reason and the fix; None if they differ.
    """
    mean = likeness(maps)
    if mean <= ALIKE:
        return None
    return (
        f"the maps of {len(maps)} images look alike (mean correlation {mean:.2f}): they show where the network looks "
        "in every image, not where something is; use a larger input or an earlier layer"
    )


def warn_of_maps_alike(explainer: Explainer, samples: Samples, *, workers: int = 2) -> None:
    """Log a warning if the maps of some images look alike.

    Args:
        explainer: Makes the maps.
        samples: Readable images; 16 of them are explained.
        workers: Threads that read images ahead.
    """
    some = samples.subset(np.unique(np.linspace(0, len(samples) - 1, _COMPARED).astype(int)))
    loaded = tensor_batches(
        explainer.net, some, _COMPARED, "", preprocess=explainer.preprocess, workers=workers, count=lambda _: None
    )
    message = alike_message(np.concatenate([explainer(images).heatmaps for _, images in loaded]))
    if message is not None:
        logger.warning("%s", message)
