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
        indices, distances = self.search(embeddings, 1)
        return indices[:, 0], distances[:, 0]

    def search(self, embeddings: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Find the nearest points of each embedding.

        Args:
            embeddings: (B, D) float32, finite.
            count: How many; fewer where there are fewer points.

        Returns:
            Indices and distances (B, count), the nearest first.
        """
        scores, indices = self._index.search(np.ascontiguousarray(embeddings), min(count, self._index.ntotal))
        distances = 1 - scores if self._cosine else np.sqrt(np.maximum(scores, 0))
        return indices, np.maximum(distances, 0).astype(np.float32)
