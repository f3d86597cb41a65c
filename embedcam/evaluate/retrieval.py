"""Do the embeddings find their own kind: Recall@1, MAP@R and NMI."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, MissingDependencyError

# Neighbours ranked at once: a quarter of a million of them take some 12 MB, however many embeddings there are.
_NEIGHBOURS_AT_ONCE = 2**18
# k-means needs no more embeddings than this; of more, a sample is clustered.
_SAMPLE = 2**15


def retrieval(
    query: NDArray[np.float32],
    query_labels: NDArray[np.int64],
    reference: NDArray[np.float32] | None = None,
    reference_labels: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Rank the references by Euclidean distance to each query, and cluster the queries by k-means.

    For L2-normalised embeddings that is the ranking by cosine similarity. Every query counts the same: one
    whose label no (other) reference bears scores 0, it is not dropped. References at exactly the same
    distance come in an arbitrary but fixed order.

    Beside the embeddings, one copy of the references is made, 4 M D bytes.

    Args:
        query: (N, D) embeddings.
        query_labels: (N,) labels.
        reference: (M, D) embeddings to search; None searches the other queries (leave-one-out: a query never
            finds itself, but may find an identical twin).
        reference_labels: (M,) labels, needed with `reference`.
        seed: Of k-means' starting centroids, and of its sample.

    Returns:
        Each in [0, 1]:

        - `recall_at_1`: share of queries whose nearest reference has the same label.
        - `map_at_r`: mean over the queries of 1 / R * the sum of precision@i over those ranks i <= R that
          have the same label, where R is the number of references with the query's label.
        - `nmi`: normalised mutual information of the query labels and a k-means clustering of the queries
          into as many clusters as labels; 1 where there is only one label. Of more than 2^15 queries, a sample
          of so many is clustered (or of as many as there are labels), and all join the nearest centroid.

    Raises:
        DataError: If embeddings and labels do not fit together, a value is not finite, or there is nothing
            to search.
        MissingDependencyError: If faiss or scikit-learn is not installed.

    Source:
        Musgrave et al. 2020, A Metric Learning Reality Check (arXiv 2003.08505): MAP@R.
    """
    query, query_labels = _checked("query", query, query_labels)
    leave_one_out = reference is None
    if reference is None:
        if len(query) < 2:
            raise DataError(
                "leave-one-out retrieval needs at least 2 embeddings, found 1; give more, or a reference set"
            )
        reference, reference_labels = query, query_labels
    else:
        if reference_labels is None:
            raise DataError("reference embeddings came without labels; give reference_labels, one for each")
        reference, reference_labels = _checked("reference", reference, reference_labels)
        if reference.shape[1] != query.shape[1]:
            raise DataError(
                f"query embeddings have {query.shape[1]} dimensions, the reference's {reference.shape[1]}; "
                "embed both with one network"
            )
    recall_at_1, map_at_r = _ranking_scores(query, query_labels, reference, reference_labels, leave_one_out)
    return {"recall_at_1": recall_at_1, "map_at_r": map_at_r, "nmi": _nmi(query, query_labels, seed)}


def _checked(
    role: str, embeddings: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    embeddings, labels = np.ascontiguousarray(embeddings, dtype=np.float32), np.asarray(labels)
    if embeddings.ndim != 2 or not embeddings.size:
        raise DataError(f"{role} embeddings must have shape (N, D) with N and D at least 1, got {embeddings.shape}")
    if labels.shape != embeddings.shape[:1]:
        raise DataError(
            f"{len(embeddings)} {role} embeddings came with labels of shape {labels.shape}; give one for each"
        )
    # A minimum or a maximum shows NaN and infinity, without an array of the embeddings' shape.
    broken = np.flatnonzero(~np.isfinite([embeddings.min(axis=1), embeddings.max(axis=1)]).all(axis=0))
    if broken.size:
        raise DataError(
            f"{role} embedding {broken[0]} is not finite ({len(broken)} of {len(embeddings)} are not); "
            "train the network again with a lower learning rate"
        )
    return embeddings, labels


def _ranking_scores(
    query: NDArray[np.float32],
    query_labels: NDArray[np.int64],
    reference: NDArray[np.float32],
    reference_labels: NDArray[np.int64],
    leave_one_out: bool,
) -> tuple[float, float]:
    """Recall@1 and MAP@R, a chunk of queries at a time."""
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError("retrieval scores need faiss; pip install 'embedcam[train]'") from error

    labels, codes = np.unique(reference_labels, return_inverse=True)
    counts = np.bincount(codes)
    place = np.searchsorted(labels, query_labels).clip(max=len(labels) - 1)
    relevant = np.where(labels[place] == query_labels, counts[place] - leave_one_out, 0)
    depth = max(1, int(relevant.max()))

    # faiss expands |x - y|^2, which loses its digits far from the origin; distances do not mind the shift.
    center = reference.mean(axis=0, dtype=np.float64).astype(np.float32)
    centered = reference - center

    ranks = np.arange(1, depth + 1)
    recall, precision = 0, 0.0
    chunk = max(1, _NEIGHBOURS_AT_ONCE // (depth + 1))
    for start in range(0, len(query), chunk):
        rows = slice(start, min(start + chunk, len(query)))
        # Not an index, which would hold one more copy of them.
        _, found = faiss.knn(query[rows] - center, centered, depth + leave_one_out)
        if leave_one_out:
            itself = found == np.arange(rows.start, rows.stop)[:, None]
            # Among many identical twins a query may not find itself; then it found one other too many.
            itself[~itself.any(axis=1), -1] = True
            found = found[~itself].reshape(-1, depth)
        correct = reference_labels[found] == query_labels[rows, None]
        recall += int(np.count_nonzero(correct[:, 0]))
        correct &= ranks <= relevant[rows, None]
        precision_at = np.cumsum(correct, axis=1) / ranks
        precision += float(np.sum((precision_at * correct).sum(axis=1) / np.maximum(relevant[rows], 1)))
    return recall / len(query), precision / len(query)


def _nmi(embeddings: NDArray[np.float32], labels: NDArray[np.int64], seed: int) -> float:
    try:
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.metrics import normalized_mutual_info_score
    except ImportError as error:
        raise MissingDependencyError("NMI needs scikit-learn; pip install 'embedcam[train]'") from error

    # k-means++, since random starts (faiss.Kmeans) merge classes that are plainly apart: on 37 tight classes
    # NMI 0.97 instead of 0.99. In float64 the order in which threads add up makes no difference.
    kmeans = KMeans(len(np.unique(labels)), n_init=3, random_state=seed)
    chosen, size = embeddings, max(_SAMPLE, kmeans.n_clusters)
    if len(embeddings) > size:
        chosen = embeddings[np.sort(np.random.default_rng(seed).choice(len(embeddings), size, replace=False))]
    with warnings.catch_warnings():
        # Fewer distinct embeddings than labels is a bad score, not a reason to warn.
        warnings.simplefilter("ignore", ConvergenceWarning)
        kmeans.fit(chosen.astype(np.float64))
    parts = (embeddings[start : start + _SAMPLE] for start in range(0, len(embeddings), _SAMPLE))
    found = np.concatenate([kmeans.predict(part.astype(np.float64)) for part in parts])
    return float(normalized_mutual_info_score(labels, found))
