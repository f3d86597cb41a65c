"""Explanations and comparisons as dictionaries that can be written as JSON. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .answer import Answer
from .explanation import AnyExplainer, Explanation

if TYPE_CHECKING:
    from .comparison import Comparison


def explanation_line(explanation: Explanation, row: int, image: str | Path, explainer: AnyExplainer) -> dict[str, Any]:
    """Describe one image of an explanation.

    Args:
        explanation: The explanation of a batch.
        row: Index of the image in the batch.
        image: Name of the image.
        explainer: The explainer that made the explanation.

    Returns:
        Cluster, distance, typicality, anomaly, notes and the nearest exemplar. Of an answer also what was asked, the
        similarity, and its parts: the sums of the positive ("for") and of the negative contributions ("against"), and
        the rest.
    """
    assert explanation.clusters is not None
    assert explanation.distances is not None
    assert explanation.typicality is not None
    assert explanation.anomaly is not None
    cluster = int(explanation.clusters[row])
    line: dict[str, Any] = {
        "image": str(image),
        "cluster": cluster,
        "cluster_labels": dict(explainer.labels_of(cluster)),
        "distance": float(explanation.distances[row]),
        "typicality": float(explanation.typicality[row]),
        "typicality_in_words": explanation.typicality_in_words(row),
        "anomaly": float(explanation.anomaly[row]),
        "notes": explanation.notes[row],
    }
    if explanation.neighbors is not None:
        line["looks_like"], line["looks_like_label"] = explainer.exemplar(int(explanation.neighbors[row]))
    if isinstance(explanation, Answer):
        line |= {
            "towards": explanation.towards[row],
            "versus": None if explanation.versus is None else explanation.versus[row],
            "similarity": float(explanation.similarity[row]),
            **_for_and_against(explanation.contributions[row]),
            "rest": float(explanation.rest[row]),
        }
    return line


def comparison_line(comparison: Comparison, row: int, image: str | Path, other: str | Path) -> dict[str, Any]:
    """Describe one pair of a comparison.

    Args:
        comparison: The comparison of a batch.
        row: Index of the pair in the batch.
        image: Name of the image.
        other: Name of the image that it is compared with.

    Returns:
        Similarity, distance, notes, and for each image the sums of the positive ("for") and of the negative
        contributions ("against").
    """
    image_sums, other_sums = (
        _for_and_against(side[row]) for side in (comparison.contributions.images, comparison.contributions.other)
    )
    return {
        "image": str(image),
        "other": str(other),
        "similarity": float(comparison.similarity[row]),
        "distance": float(comparison.distances[row]),
        **{sign: {"image": image_sums[sign], "other": other_sums[sign]} for sign in image_sums},
        "notes": comparison.shared.images.notes[row],
    }


def _for_and_against(contributions: NDArray[np.float32]) -> dict[str, float]:
    """Sum positive and negative contributions."""
    return {"for": float(contributions.clip(min=0).sum()), "against": float(contributions.clip(max=0).sum())}
