"""Nearest-neighbour search among centroids and exemplars: exact, or by cells where there are very many."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Numbers that an exact search reads in less than 1 ms on one core: 31,250 exemplars of 128 dimensions.
_EXACT = 4_000_000
# Of 4,000 cells of a million exemplars these are read in 1 ms; images of classes that no exemplar shows need half.
_PROBES = 64
# Of 300,000 exemplars, with 128 points and 25 rounds as many cells have to be read, 30 and not 31.
_POINTS_A_CELL, _ROUNDS = 32, 5
# So few embeddings are looked up one by one: faiss would share them between threads, and to wake these was measured
# to take 10 ms on cores that had other work, against 0.2 ms for all 16 among 50 centroids.
_ALONE = 32
_SAMPLE, _NEAREST, _RECALL = 1000, 10, 0.99


@dataclass(frozen=True)
class Cells:
    """Exemplars parted into cells around centroids, so that a search reads the nearest cells alone.

    Attributes:
        centroids: (M, D) float32.
        cell: (N,) int32, each exemplar's cell.
        probes: How many cells a search reads.
    """

    centroids: NDArray[np.float32]
    cell: NDArray[np.int32]
    probes: int


def coarse_cells(points: NDArray[np.float32], metric: str, seed: int = 0) -> Cells | None:
    """Part exemplars into cells, once, offline.

    A search reads as many cells as find 99 % of the 10 nearest exemplars of exemplars, but at least 64, and at least
    as many as it can in half the time of the largest exact search: images unlike all exemplars need more of them.

    Args:
        points: (N, D) float32, finite, of length 1 for cosine.
        metric: "cosine" or "euclidean".
        seed: Of the exemplars that the cells are trained on and measured with.

    Returns:
        4 sqrt(N) cells, or None where exact search does as well: there are few exemplars, or so little structure
        that most cells would have to be read.

    Source:
        Sivic & Zisserman, Video Google (ICCV 2003), for the inverted file.
    """
    import faiss

    if points.size <= _EXACT:
        return None
    count = round(4 * len(points) ** 0.5)
    shuffled = np.random.default_rng(seed).permutation(len(points))
    trainer = faiss.Kmeans(
        points.shape[1],
        count,
        niter=_ROUNDS,
        seed=seed % 2**31,
        spherical=metric == "cosine",
        max_points_per_centroid=_POINTS_A_CELL,
        min_points_per_centroid=1,
    )
    trainer.train(points[shuffled[: _POINTS_A_CELL * count]])
    centroids = np.asarray(trainer.centroids, dtype=np.float32)
    cell = trainer.assign(points)[1].astype(np.int32)

    own = shuffled[:_SAMPLE]
    measure = _measure(metric)
    near = faiss.knn(points[own], points, _NEAREST + 1, metric=measure)[1]
    order = faiss.knn(points[own], centroids, count, metric=measure)[1]
    rank = np.take_along_axis(np.argsort(order, axis=1), cell[near], axis=1)
    enough = int(np.quantile(rank[near != own[:, None]], _RECALL, method="higher")) + 1
    if 2 * enough > count:
        return None
    return Cells(centroids, cell, min(count, max(enough, _PROBES, count * _EXACT // (2 * points.size))))


def searchable(embeddings: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell which embeddings are finite, and short enough for the squared distance of two of them to be finite.

    Args:
        embeddings: (N, D) float32.

    Returns:
        (N,) True where faiss can search for it; otherwise it gives the index -1, or ends the whole process.
    """
    lengths = np.einsum("nd,nd->n", embeddings, embeddings)  # a plain product would warn of the overflow
    short: NDArray[np.bool_] = lengths < np.finfo(np.float32).max / 16
    return short


class Neighbors:
    """A nearest-neighbour index over centroids or exemplars; exact, unless it is given cells.

    What is found does not depend, in any bit, on which other embeddings are looked up with it.

    Args:
        points: (N, D) float32.
        metric: "cosine" or "euclidean".
        cells: From `coarse_cells`, of the same points.
    """

    def __init__(self, points: NDArray[np.float32], metric: str, cells: Cells | None = None) -> None:
        import faiss

        self._cosine = metric == "cosine"
        dim, measure = points.shape[1], _measure(metric)
        coarse: Any
        if cells is None:
            # Exact search is one cell of all points, not faiss's flat index: that one takes another way for large
            # batches, whose last bits differ, and a single embedding among 30,000 points was measured to take it
            # 16 ms on 2 cores, where this takes 0.7.
            coarse = faiss.IndexFlat(dim, measure)
            coarse.add(np.zeros((1, dim), dtype=np.float32))
            self._index: Any = faiss.IndexIVFFlat(coarse, dim, 1, measure)
            self._fill(0, np.arange(len(points)), points)
        else:
            coarse = Neighbors(cells.centroids, metric)._index
            self._index = faiss.IndexIVFFlat(coarse, dim, len(cells.centroids), measure)
            self._index.nprobe = cells.probes
            members = np.argsort(cells.cell, kind="stable")
            bounds = np.searchsorted(cells.cell[members], np.arange(len(cells.centroids) + 1))
            for number, (start, end) in enumerate(pairwise(bounds)):
                self._fill(number, members[start:end], points[members[start:end]])
        self._index.is_trained, self._index.ntotal = True, len(points)

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
        import faiss

        count = min(count, self._index.ntotal)
        embeddings = np.ascontiguousarray(embeddings)
        scores = np.empty((len(embeddings), count), dtype=np.float32)
        indices = np.empty((len(embeddings), count), dtype=np.int64)
        step = 1 if len(embeddings) <= _ALONE else len(embeddings)
        for start in range(0, len(embeddings), step):
            part = slice(start, start + step)
            scores[part], indices[part] = self._index.search(embeddings[part], count)
        # Where the cells that were read hold too few points, all are read.
        short = indices[:, -1] < 0
        if short.any():
            everything = faiss.SearchParametersIVF()
            everything.nprobe = self._index.nlist
            # faiss.contrib.torch_utils, once imported by anyone, puts a search in its place that knows no parameters.
            search = getattr(self._index, "search_numpy", self._index.search)
            scores[short], indices[short] = search(embeddings[short], count, params=everything)
        distances = 1 - scores if self._cosine else np.sqrt(np.maximum(scores, 0))
        return indices, np.maximum(distances, 0).astype(np.float32)

    def _fill(self, cell: int, ids: NDArray[np.int64], points: NDArray[np.float32]) -> None:
        """Fill a cell at once: it takes no more memory than it needs, while faiss's `add` lets it grow by doubling."""
        import faiss

        codes = np.ascontiguousarray(points, dtype=np.float32).view(np.uint8)
        self._index.invlists.add_entries(cell, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(codes))


def _measure(metric: str) -> int:
    import faiss

    return int(faiss.METRIC_INNER_PRODUCT if metric == "cosine" else faiss.METRIC_L2)
