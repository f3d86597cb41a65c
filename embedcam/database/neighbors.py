"""Exact nearest-neighbour search, for centroids and for exemplars."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Neighbors:
    """An exact nearest-neighbour index over centroids or exemplars.

    Args:
        points: (N, D) float32.
        metric: "cosine" or "euclidean".
    """

    def __init__(self, points: NDArray[np.float32], metric: str) -> None:
        import faiss

        self._cosine = metric == "cosine"
        self._index = (faiss.IndexFlatIP if self._cosine else faiss.IndexFlatL2)(points.shape[1])
        self._index.add(np.ascontiguousarray(points))

    def nearest(self, embeddings: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Find the nearest point of each embedding.

        Args:
            embeddings: (B, D) float32, finite.

        Returns:
            Index (B,) and distance (B,): 1 - cosine, or Euclidean.
        """
        scores, indices = self._index.search(np.ascontiguousarray(embeddings), 1)
        best = scores[:, 0]
        distance = 1 - best if self._cosine else np.sqrt(np.maximum(best, 0))
        return indices[:, 0], np.maximum(distance, 0).astype(np.float32)
