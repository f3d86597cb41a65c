"""What a reader must know about an image that lies far from all that is stored. Needs no torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def unlike_notes(
    distances: NDArray[np.float32], anomaly: NDArray[np.float32], finite: NDArray[np.bool_]
) -> list[list[str]]:
    """Note which images are unlike the training images.

    Args:
        distances: (B,) to the nearest centroids.
        anomaly: (B,), see `Explanation`.
        finite: (B,) whether the embedding is finite.

    Returns:
        For each image a list of at most one note.
    """
    return [
        [
            f"unlike the training images: {distance:.3f} from the nearest cluster's centre, 99 % of them lie within "
            f"{distance / times:.3f}"
        ]
        if ok and times > 1
        else []
        for distance, times, ok in zip(distances, anomaly, finite, strict=True)
    ]
