"""Nearest-neighbour search among centroids and exemplars: exact, or by an inverted file if there are very many."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Numbers that an exact search reads in less than 1 ms on one core: 31,250 exemplars with 128 dimensions.
_EXACT = 4_000_000
# Of 4,000 partitions of a million exemplars this many are read in 1 ms. Images unlike all exemplars need about half.
_PROBES = 64
# With 300,000 exemplars, 128 points per partition and 25 rounds of k-means gave 30 probes instead of 31.
_POINTS_PER_PARTITION, _ROUNDS = 32, 5
# Up to this number embeddings are searched one by one. faiss would use its threads, and waking them took 10 ms on busy
# cores, against 0.2 ms for 16 embeddings among 50 centroids.
_ONE_BY_ONE = 32
_SAMPLE, _NEAREST, _RECALL = 1000, 10, 0.99


@dataclass(frozen=True)
class Partitions:
    """An inverted file: exemplars assigned to the nearest of many centroids, so that a search reads only some lists.

    Attributes:
        centroids: (M, D) float32.
        partition: (N,) int32, index of each exemplar's partition.
        probes: Number of partitions that a search reads.
    """

    centroids: NDArray[np.float32]
    partition: NDArray[np.int32]
    probes: int


def partition(points: NDArray[np.float32], metric: str, seed: int = 0) -> Partitions | None:
    """Partition exemplars offline.

    The number of probes is what finds 99 % of the 10 nearest exemplars of exemplars, but at least 64, and at least what
    takes half the time of the largest exact search, since images unlike all exemplars need more probes.

    Args:
        points: (N, D) float32, finite, of length 1 for cosine.
        metric: "cosine" or "euclidean".
        seed: Selects the exemplars for training and for measuring the recall.

    Returns:
        4 sqrt(N) partitions, or None if exact search is as good: with few exemplars, or with so little structure that
        most partitions would have to be read.

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
        max_points_per_centroid=_POINTS_PER_PARTITION,
        min_points_per_centroid=1,
    )
    trainer.train(points[shuffled[: _POINTS_PER_PARTITION * count]])
    centroids = np.asarray(trainer.centroids, dtype=np.float32)
    assigned = trainer.assign(points)[1].astype(np.int32)

    queries = shuffled[:_SAMPLE]
    measure = _measure(metric)
    near = faiss.knn(points[queries], points, _NEAREST + 1, metric=measure)[1]
    order = faiss.knn(points[queries], centroids, count, metric=measure)[1]
    rank = np.take_along_axis(np.argsort(order, axis=1), assigned[near], axis=1)
    enough = int(np.quantile(rank[near != queries[:, None]], _RECALL, method="higher")) + 1
    if 2 * enough > count:
        return None
    return Partitions(centroids, assigned, min(count, max(enough, _PROBES, count * _EXACT // (2 * points.size))))


def searchable(embeddings: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Check which embeddings are finite, and short enough for the squared distance between any two to be finite.

    Args:
        embeddings: (N, D) float32.

    Returns:
        (N,) True if faiss can search for it; otherwise faiss returns the index -1 or ends the process.
    """
    squared = np.einsum("nd,nd->n", embeddings, embeddings)  # a plain product would warn about an overflow
    short: NDArray[np.bool_] = squared < np.finfo(np.float32).max / 16
    return short


class Neighbors:
    """A nearest-neighbour index over centroids or exemplars; exact without partitions.

    The result for an embedding does not depend, in any bit, on the other embeddings of the call.

    Args:
        points: (N, D) float32.
        metric: "cosine" or "euclidean".
        partitions: Result of `partition` for the same points.
    """

    def __init__(self, points: NDArray[np.float32], metric: str, partitions: Partitions | None = None) -> None:
        import faiss

        self._cosine = metric == "cosine"
        dim, measure = points.shape[1], _measure(metric)
        coarse: Any
        if partitions is None:
            # Exact search uses one partition of all points instead of faiss's flat index. That one computes large
            # batches in another way, with other last bits, and takes 16 ms for a single embedding among 30,000 points
            # on 2 cores, against 0.7 ms.
            coarse = faiss.IndexFlat(dim, measure)
            coarse.add(np.zeros((1, dim), dtype=np.float32))
            self._index: Any = faiss.IndexIVFFlat(coarse, dim, 1, measure)
            self._fill(0, np.arange(len(points)), points)
        else:
            coarse = Neighbors(partitions.centroids, metric)._index
            self._index = faiss.IndexIVFFlat(coarse, dim, len(partitions.centroids), measure)
            self._index.nprobe = partitions.probes
            members = np.argsort(partitions.partition, kind="stable")
            bounds = np.searchsorted(partitions.partition[members], np.arange(len(partitions.centroids) + 1))
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
            count: Number of points; fewer if there are fewer.

        Returns:
            Indices and distances (B, count), nearest first.
        """
        import faiss

        count = min(count, self._index.ntotal)
        embeddings = np.ascontiguousarray(embeddings)
        scores = np.empty((len(embeddings), count), dtype=np.float32)
        indices = np.empty((len(embeddings), count), dtype=np.int64)
        step = 1 if len(embeddings) <= _ONE_BY_ONE else len(embeddings)
        for start in range(0, len(embeddings), step):
            part = slice(start, start + step)
            scores[part], indices[part] = self._index.search(embeddings[part], count)
        # If the partitions that were read hold too few points, read all of them.
        short = indices[:, -1] < 0
        if short.any():
            everything = faiss.SearchParametersIVF()
            everything.nprobe = self._index.nlist
            # faiss.contrib.torch_utils, if anything imports it, replaces `search` by one without parameters.
            search = getattr(self._index, "search_numpy", self._index.search)
            scores[short], indices[short] = search(embeddings[short], count, params=everything)
        distances = 1 - scores if self._cosine else np.sqrt(np.maximum(scores, 0))
        return indices, np.maximum(distances, 0).astype(np.float32)

    def _fill(self, number: int, ids: NDArray[np.int64], points: NDArray[np.float32]) -> None:
        # faiss's `add` would grow the list by doubling and take up to twice the memory.
        import faiss

        codes = np.ascontiguousarray(points, dtype=np.float32).view(np.uint8)
        self._index.invlists.add_entries(number, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(codes))


def _measure(metric: str) -> int:
    import faiss

    return int(faiss.METRIC_INNER_PRODUCT if metric == "cosine" else faiss.METRIC_L2)
