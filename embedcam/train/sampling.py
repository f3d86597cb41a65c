"""Labels to train with, and the batches of an epoch."""

from __future__ import annotations

import logging
import math

import numpy as np
from numpy.typing import NDArray

from ..data.samples import Samples
from ..errors import DataError

logger = logging.getLogger("embedcam")


def labels_of(samples: Samples) -> NDArray[np.int64]:
    """Return the labels after checking that they allow training.

    Args:
        samples: The training images.

    Returns:
        (N,).

    Raises:
        DataError: If there are no labels, or fewer than two classes of at least two images.
    """
    if samples.labels is None:
        raise DataError("training needs labels: put the images of each class into a folder of its own")
    classes, counts = np.unique(samples.labels, return_counts=True)
    if len(classes) < 2:
        raise DataError(
            f"training needs two classes, found only {samples.names[classes[0]]!r}; add images of another class"
        )
    if np.count_nonzero(counts > 1) < 2:
        raise DataError(
            f"training needs two classes of at least two images, found {np.count_nonzero(counts > 1)} of "
            f"{len(classes)}; add images to the others"
        )
    return samples.labels


def warn_of_single_images(labels: NDArray[np.int64]) -> None:
    """Warn of classes of one image: they are embedded and evaluated, but form no positive pair to train with.

    Args:
        labels: (N,).
    """
    counts = np.unique(labels, return_counts=True)[1]
    if (counts == 1).any():
        logger.warning(
            "%d of %d classes have one image and are not trained with; they are only embedded and evaluated",
            np.count_nonzero(counts == 1),
            len(counts),
        )


def epoch_order(labels: NDArray[np.int64], batch_size: int, seed: int, epoch: int) -> tuple[NDArray[np.int64], int]:
    """Draw the images of an epoch so that every batch has at least four images of each of its classes.

    The draw depends on the arguments alone, so that a run can be resumed. Classes of one image are left out; images
    of classes of two or three are repeated.

    Args:
        labels: (N,).
        batch_size: Images per batch, approximately.
        seed: Seed of the run.
        epoch: Number of the epoch.

    Returns:
        Rows, in order, and the actual number of images per batch.
    """
    from pytorch_metric_learning.samplers import MPerClassSampler
    from pytorch_metric_learning.utils import common_functions

    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(counts[codes] > 1)
    classes = int(np.count_nonzero(counts > 1))
    per_class = max(4, math.ceil(batch_size / classes))
    size = per_class * max(2, min(classes, batch_size // per_class))
    sampler = MPerClassSampler(labels[rows], per_class, size, length_before_new_iter=max(len(rows), size))
    before = common_functions.NUMPY_RANDOM
    common_functions.NUMPY_RANDOM = np.random.RandomState([seed % 2**32, epoch])
    try:
        return rows[np.fromiter(sampler, dtype=np.int64)], size
    finally:
        common_functions.NUMPY_RANDOM = before
