"""What a reader must know about an image, and the `Explanation` of what a graph put out. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.preprocess import Preprocess
from .explanation import FLAT, NOT_FINITE, Explanation


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


def explanation_of(
    found: Mapping[str, NDArray[Any]], preprocess: Preprocess, neighbors: NDArray[np.int64] | None = None
) -> Explanation:
    """Show what an explainer's graph put out as an explanation.

    Args:
        found: What `onnx_record.OUTPUTS` names; its maps are of the images' size.
        preprocess: How the images were made.
        neighbors: (B,) index of the nearest exemplar, where they are known.

    Returns:
        The explanation.
    """
    notes = unlike_notes(found["distance"], found["anomaly"], found["finite"])
    flat = found["heatmap"].max(axis=(1, 2)) == 0
    for mine, finite, blank in zip(notes, found["finite"], flat, strict=True):
        if not finite:
            mine.append(NOT_FINITE)
        elif blank:
            mine.append(FLAT)
    return Explanation(
        found["heatmap"],
        found["raw"],
        notes,
        embeddings=found["embedding"],
        clusters=found["cluster"],
        distances=found["distance"],
        typicality=found["typicality"],
        anomaly=found["anomaly"],
        neighbors=neighbors,
        preprocess=preprocess,
    )
