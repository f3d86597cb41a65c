"""Rank references for queries: Recall@k, CMC, mAP and MAP@R, and the hits that decide about them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.samples import Samples
from ..errors import DataError

RECALL_RANKS = (1, 5, 10)
CMC_RANKS = 50

# Distances computed at once; their arrays take about 30 MB, however many embeddings there are.
_DISTANCES_AT_ONCE = 2**21


@dataclass(frozen=True, eq=False)
class Side:
    """The queries, or the references among which they are searched.

    Attributes:
        embeddings: float32 (N, D).
        labels: (N,) numbers or texts.
        cameras: (N,) what took each image, or None: references with a query's label and camera are left out of its
            ranking.
        ids: (N,) names of the images, or None.
    """

    embeddings: NDArray[np.float32]
    labels: NDArray[Any]
    cameras: NDArray[Any] | None = None
    ids: NDArray[Any] | None = None

    @classmethod
    def of(cls, samples: Samples, kept: NDArray[np.int64], embeddings: NDArray[np.float32]) -> Side:
        """Join embeddings to the data set that they are of.

        Args:
            samples: Images with labels.
            kept: (N,) indices of the embedded images.
            embeddings: (N, D).

        Returns:
            The side, with labels by name.
        """
        assert samples.labels is not None
        cameras = getattr(samples, "cameras", None)
        return cls(
            embeddings,
            np.array(samples.names)[samples.labels[kept]],
            None if cameras is None else cameras[kept],
            np.array([samples.ids[row] for row in kept]),
        )

    def __len__(self) -> int:
        return len(self.embeddings)


@dataclass(frozen=True, eq=False)
class Ranking:
    """How the references rank for each of N queries.

    Attributes:
        first: (N,) rank of the nearest reference with the query's label, from 1; 0 if there is none.
        average_precision: (N,) mean over the references with the query's label of the precision at their ranks; 0 if
            there is none.
        precision_at_r: (N,) 1 / R * the sum of the precisions at those ranks up to R that have the label, where R is
            the number of references with it.
        right: (N,) row of the nearest reference with the label; -1 if there is none.
        wrong: (N,) row of the nearest reference with another label; -1 if there is none.
        searched: Number of references.
        cameras: Whether references of the same camera were left out.
    """

    first: NDArray[np.int64]
    average_precision: NDArray[np.float64]
    precision_at_r: NDArray[np.float64]
    right: NDArray[np.int64]
    wrong: NDArray[np.int64]
    searched: int
    cameras: bool

    def scores(self) -> dict[str, Any]:
        """Average over the queries.

        With cameras, queries without any right reference are left out, as in the usual code; otherwise they score 0.

        Returns:
            `recall_at_1`, `recall_at_5`, `recall_at_10`: share of queries with a right reference among the first k;
            `cmc`: the same for k = 1 ... 50; `map`, `map_at_r`; `queries`, the number of queries that count; and
            `searched`, the number of references.
        """
        counted = self.first > 0 if self.cameras else np.ones(len(self.first), bool)
        first, count = self.first[counted], max(int(counted.sum()), 1)
        found = np.bincount(first[(first > 0) & (first <= CMC_RANKS)], minlength=CMC_RANKS + 1)[1:].cumsum() / count
        return {
            **{f"recall_at_{rank}": float(found[rank - 1]) for rank in RECALL_RANKS},
            "map": float(self.average_precision[counted].sum() / count),
            "map_at_r": float(self.precision_at_r[counted].sum() / count),
            "cmc": found.tolist(),
            "queries": int(counted.sum()),
            "searched": self.searched,
        }


def rank(queries: Side, references: Side | None = None) -> Ranking:
    """Rank references by Euclidean distance, which for L2-normalised embeddings is the ranking by cosine similarity.

    A wrong reference at exactly the distance of a right one ranks before it, so a network that maps all images to one
    point scores 0. An image is never a hit of itself: with ids, a reference with the id and the embedding of the query
    is left out.

    Args:
        queries: The queries.
        references: The references; None for the queries themselves (leave-one-out).

    Returns:
        The ranking; about 50 bytes per query. One copy of the references is made (4 M D bytes).

    Raises:
        DataError: If the two sides do not fit together, or there is nothing to search.

    Source:
        Zheng et al. 2015, Scalable Person Re-identification, for cameras, with the average precision of torchreid and
        open-reid: the mean of the precisions at the ranks of right references, not the trapezoid of Market-1501's own
        code. Musgrave et al. 2020 (arXiv 2003.08505): MAP@R.
    """
    queries = _checked("query", queries)
    if references is None:
        if len(queries) < 2:
            raise DataError("leave-one-out retrieval needs at least 2 embeddings, got 1; pass more, or a reference set")
        references, itself = queries, np.arange(len(queries))
    else:
        references = _checked("reference", references)
        dim, other = queries.embeddings.shape[1], references.embeddings.shape[1]
        if dim != other:
            raise DataError(
                f"query embeddings have {dim} dimensions, reference embeddings {other}; use one network for both"
            )
        itself = _same(queries, references)
    query_codes, codes = _codes(queries.labels, references.labels)
    cameras = None
    if queries.cameras is not None and references.cameras is not None:
        cameras = _codes(queries.cameras, references.cameras)
    # |x - y|^2 is expanded, which loses precision far from the origin; a shift leaves distances unchanged.
    center = references.embeddings.mean(axis=0, dtype=np.float64).astype(np.float32)
    centered = references.embeddings - center
    norms = np.einsum("nd,nd->n", centered, centered)
    parts = []
    rows_at_once = max(1, _DISTANCES_AT_ONCE // len(references))
    for start in range(0, len(queries), rows_at_once):
        rows = slice(start, start + rows_at_once)
        distances = norms - 2 * ((queries.embeddings[rows] - center) @ centered.T)  # less the query's own norm
        same = query_codes[rows, None] == codes
        right = same.copy()
        if cameras is not None:
            right &= cameras[0][rows, None] != cameras[1]
        known = np.flatnonzero(itself[rows] >= 0)
        right[known, itself[rows][known]] = False
        parts.append(_ranked(distances, same, right))
    first, average, at_r, nearest, wrong = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Ranking(first, average, at_r, nearest, wrong, len(references), cameras is not None)


def _checked(role: str, side: Side) -> Side:
    embeddings, labels = np.ascontiguousarray(side.embeddings, dtype=np.float32), np.asarray(side.labels)
    if embeddings.ndim != 2 or not embeddings.size:
        raise DataError(f"{role} embeddings must have shape (N, D) with N and D at least 1, got {embeddings.shape}")
    if labels.shape != embeddings.shape[:1]:
        raise DataError(
            f"{len(embeddings)} {role} embeddings came with labels of shape {labels.shape}; pass one for each"
        )
    # The minimum and the maximum show NaN and infinity without a temporary array of the embeddings' size.
    broken = np.flatnonzero(~np.isfinite([embeddings.min(axis=1), embeddings.max(axis=1)]).all(axis=0))
    if broken.size:
        raise DataError(
            f"{role} embedding {broken[0]} is not finite ({len(broken)} of {len(embeddings)} are not); "
            "train the network again with a lower learning rate"
        )
    return replace(side, embeddings=embeddings, labels=labels)


def _same(queries: Side, references: Side) -> NDArray[np.int64]:
    """Find the row of each query among the references; -1 where it is none of them."""
    rows = np.full(len(queries), -1)
    if queries.ids is not None and references.ids is not None:
        places = {name: row for row, name in enumerate(references.ids)}
        rows = np.array([places.get(name, -1) for name in queries.ids])
        # Other pictures of another data set may have the same names.
        apart = np.linalg.norm(queries.embeddings - references.embeddings[rows], axis=1)
        rows[apart > 1e-2 * np.linalg.norm(queries.embeddings, axis=1)] = -1
    return rows


def _codes(ours: NDArray[Any], theirs: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    codes = np.unique(np.concatenate([ours, theirs]), return_inverse=True)[1].astype(np.int64)
    return codes[: len(ours)], codes[len(ours) :]


def _ranked(
    distances: NDArray[np.float32], same: NDArray[np.bool_], right: NDArray[np.bool_]
) -> tuple[NDArray[Any], ...]:
    """Rank a block (b, M): what `Ranking` holds of its queries."""
    count = len(distances)
    first, nearest = np.zeros(count, np.int64), np.full(count, -1)
    average, at_r = np.zeros(count), np.zeros(count)
    others = np.where(same, np.float32(np.inf), distances)
    wrong = np.where(same.all(axis=1), -1, others.argmin(axis=1))
    for row in np.flatnonzero(right.any(axis=1)):
        members = np.flatnonzero(right[row])
        own = distances[row, members]
        nearest[row] = members[own.argmin()]
        own.sort()
        found = np.arange(1, len(own) + 1)
        nearer = np.sort(others[row][others[row] <= own[-1]])
        ranks = np.searchsorted(nearer, own, side="right") + found
        precisions = found / ranks
        first[row] = ranks[0]
        average[row] = precisions.mean()
        at_r[row] = precisions[ranks <= len(own)].sum() / len(own)
    return first, average, at_r, nearest, wrong
